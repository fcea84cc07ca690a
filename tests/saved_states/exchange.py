"""Twenty steps of one class, a saved state, twenty steps of the other: what all workers do."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

HALF, WHOLE = range(20), range(40)
REST = range(len(HALF), len(WHOLE))


class Training(Protocol):
    """A model and its optimizer."""

    def run(self, steps: range) -> None:
        """Take steps, each with gradients of its own number."""
        ...

    def values(self) -> list[Any]:
        """The parameters as NumPy arrays."""
        ...

    def take(self, values: list[Any]) -> None:
        """Set the parameters."""
        ...


class Way(NamedTuple):
    """One way in which a framework saves an optimizer's state.

    Args:
        save: of a training; what it returns outlives later steps.
        load: into a training that has had no step.
    """

    save: Callable[[Any], Any]
    load: Callable[[Any, Any], None]


def differences(
    rules: Collection[str],
    start: Callable[[str, str], Training],
    ways: Mapping[str, Way],
    stateless: Collection[str] = (),
) -> dict[str, float]:
    """How far forty steps with an exchange in the middle end from forty of the framework's class.

    Args:
        rules: names of the framework's classes.
        start: of `"theirs"` or `"ours"` and a rule, a training that always begins alike.
        ways: how states are saved.
        stateless: the rules that keep nothing: for every other one a state that is not loaded must
            be seen.
    """
    found: dict[str, float] = {}
    for rule in rules:
        whole = start("theirs", rule)
        whole.run(WHOLE)
        for way in ways:
            for first, second in (("theirs", "ours"), ("ours", "theirs")):
                values = _exchanged(start, rule, first, second, ways[way])
                found[f"{rule}, {way}, {first} to {second}"] = _apart(whole.values(), values)
        if rule not in stateless:
            forgetful = Way(lambda _: None, lambda *_: None)
            lost = _exchanged(start, rule, "theirs", "ours", forgetful)
            assert _apart(whole.values(), lost) > 1e-3, f"{rule} does not need its state"
    return found


def _exchanged(start: Any, rule: str, first: str, second: str, way: Way) -> list[Any]:
    a = start(first, rule)
    a.run(HALF)
    saved, values = way.save(a), [np.array(value) for value in a.values()]
    b = start(second, rule)
    b.take(values)
    way.load(b, saved)
    b.run(REST)
    return b.values()


def _apart(expected: list[Any], values: list[Any]) -> float:
    found = 0.0
    for x, y in zip(expected, values, strict=True):
        if x.size:
            found = max(found, float(np.max(np.abs(x - y)) / np.max(np.abs(x))))
    return found


def gradient(step: int, place: int, shape: Any) -> Any:
    """The gradient of one parameter in one step, with some large elements."""
    random = np.random.default_rng([step, place])
    return np.asarray(random.normal(size=tuple(shape)) * (1.0 + (step % 7 == 3)))


def tell(found: Mapping[str, float]) -> None:
    """Print the differences, as the test reads them."""
    json.dump(found, sys.stdout)
    print()
