"""Which tests show which quirks, so that none is listed that nothing shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from isostep import dialects

_Test = TypeVar("_Test", bound=Callable[..., None])


class Quirks:
    """The quirks of one dialect, ticked off by `shown`."""

    def __init__(self, dialect: str) -> None:
        described = dialects.get(dialect)
        every = [described.quirks, *(s.quirks for s in described.spellings.values())]
        self.listed = {quirk.partition(":")[0] for quirks in every for quirk in quirks}
        self.ticked: set[str] = set()

    def shown(self, *names: str) -> Callable[[_Test], _Test]:
        """The decorator of a test that shows these quirks."""
        self.ticked |= set(names)
        return lambda test: test

    def assert_all_shown(self) -> None:
        assert self.ticked == self.listed
