"""Ctrl-C in the middle of a step: it waits until arrays and counts agree again."""

from __future__ import annotations

# What `signal` stands on: it makes enums of everything, which takes ten times as long.
import _signal  # pyright: ignore[reportMissingImports]
import threading
from typing import Any

_INTERRUPT = _signal.SIGINT


class Delayed:
    """Have an interrupt that comes inside a `with` block act after it."""

    def __init__(self) -> None:
        self._came: list[Any] = []
        self._before: Any = None

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():  # others are not interrupted
            before = _signal.getsignal(_INTERRUPT)
            if callable(before):
                self._before = before
                _signal.signal(_INTERRUPT, self._note)

    def __exit__(self, *raised: object) -> None:
        self.end()

    def end(self) -> None:
        """Put the handler back and have it act; done twice, it does nothing more."""
        if self._before is None:
            return
        if _signal.getsignal(_INTERRUPT) == self._note:
            _signal.signal(_INTERRUPT, self._before)
        if self._came:
            self._before(_INTERRUPT, self._came.pop())

    def _note(self, number: int, frame: Any) -> None:
        self._came.append(frame)
