"""The list of differences that are right, each with its reason: `justified.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

PATH = Path(__file__).with_name("justified.toml")
FIELDS = {"suite", "test", "reason"}


@dataclass(frozen=True)
class Justified:
    """A test that may end otherwise with isostep's optimizers.

    Args:
        suite: its suite's name.
        test: its id.
        reason: one sentence that a maintainer of the framework would accept.
    """

    suite: str
    test: str
    reason: str


def read(text: str, suites: Collection[str]) -> list[Justified]:
    """The entries of the list.

    Args:
        text: TOML, with tables `[[difference]]` of `suite`, `test` and `reason`.
        suites: the names of all suites.

    Raises:
        ValueError: a field is missing, unknown or empty, a suite unknown, or a test listed twice.
    """
    found: list[Justified] = []
    for number, entry in enumerate(tomllib.loads(text).get("difference", []), 1):
        where = f"justified.toml, difference {number}"
        if set(entry) != FIELDS or not all(isinstance(v, str) and v for v in entry.values()):
            raise ValueError(f"{where}: needs {', '.join(sorted(FIELDS))}, each a string")
        if entry["suite"] not in suites:
            raise ValueError(
                f"{where}: suite {entry['suite']!r} is unknown: use one of {', '.join(suites)}"
            )
        new = Justified(**entry)
        if any((j.suite, j.test) == (new.suite, new.test) for j in found):
            raise ValueError(f"{where}: {new.test} is listed twice for {new.suite}")
        found.append(new)
    return found


def load(suites: Collection[str]) -> list[Justified]:
    """The entries of `justified.toml`."""
    return read(PATH.read_text(), suites)
