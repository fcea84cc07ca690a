"""What differs between a suite run with the framework's optimizers and with isostep's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from peers.runner import Outcome

COUNTED = ("passed", "failed", "skipped")
"""Outcomes that the page has columns for; a crash or a timeout counts as failed."""
NOT_RUN = "not run"


@dataclass(frozen=True)
class Difference:
    """A test that ends otherwise with isostep's optimizers.

    Args:
        test: its id.
        theirs, ours: both outcomes.
        message: why it failed.
        reason: why that is right; empty where nobody has said so.
    """

    test: str
    theirs: str
    ours: str
    message: str = ""
    reason: str = ""


def differences(theirs: Mapping[str, Outcome], ours: Mapping[str, Outcome]) -> list[Difference]:
    """Every test whose outcome differs, in the order of the framework's own run.

    Args:
        theirs, ours: outcomes by id.
    """
    missing = Outcome(NOT_RUN)
    found: list[Difference] = []
    for test in dict.fromkeys([*theirs, *ours]):
        one, other = theirs.get(test, missing), ours.get(test, missing)
        if one.outcome != other.outcome:
            message = other.message or one.message
            found.append(Difference(test, one.outcome, other.outcome, message))
    return found


def counts(outcomes: Mapping[str, Outcome]) -> dict[str, int]:
    """Numbers of tests passed, failed and skipped."""
    found = Counter(o.outcome if o.outcome in COUNTED else "failed" for o in outcomes.values())
    return {outcome: found[outcome] for outcome in COUNTED}


def touched(outcomes: Mapping[str, Outcome]) -> int:
    """How many tests made or stepped an optimizer of isostep."""
    return sum(o.made + o.steps > 0 for o in outcomes.values())
