"""Counting how often isostep's optimizers are made and step, without changing what they do.

Processes that a test starts count into the same file.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers.places import Places, owner

MADE, STEP = b"m", b"s"


class Counts:
    """How often isostep was used since `start`.

    Args:
        tracing: whether the framework is tracing, when nothing is counted.
        path: a file to which every process adds one byte for each event.
    """

    def __init__(self, tracing: Callable[[], bool], path: Path) -> None:
        self._tracing = tracing
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        self.start()

    def start(self) -> None:
        """Begin at zero."""
        self._from = os.fstat(self._file).st_size

    @property
    def made(self) -> int:
        """How often an optimizer was made."""
        return self._since().count(MADE)

    @property
    def steps(self) -> int:
        """How often one stepped."""
        return self._since().count(STEP)

    def _since(self) -> bytes:
        return os.pread(self._file, os.fstat(self._file).st_size - self._from, self._from)

    def watch(self, places: Places) -> None:
        """Count from now on.

        Raises:
            AttributeError: a class does not define the method that is to be counted.
        """
        for method in places.constructs:
            self._wrap(method, MADE)
        for method in places.steps:
            self._wrap(method, STEP)

    def _wrap(self, method: str, event: bytes) -> None:
        cls, name = owner(method)
        found = vars(cls)[name]
        original = found.__func__ if isinstance(found, staticmethod) else found
        tracing, file = self._tracing, self._file

        @functools.wraps(original)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if not tracing():
                os.write(file, event)
            return original(*args, **kwargs)

        setattr(cls, name, staticmethod(counted) if original is not found else counted)
