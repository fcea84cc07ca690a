"""Ctrl-C in the middle of a step: it waits until arrays and counts agree again."""

from __future__ import annotations

# What `signal` stands on: it makes enums of everything, which takes ten times as long.
import _signal  # pyright: ignore[reportMissingImports]
import threading
from typing import Any

_INTERRUPT = _signal.SIGINT


class Delayed:
    """Have an interrupt that comes inside a `with` block act after it."""

    def __enter__(self) -> None:
        self._came: list[Any] = []
        self._before: Any = None
        if threading.current_thread() is threading.main_thread():  # others are not interrupted
            before = _signal.getsignal(_INTERRUPT)
            if callable(before):
                self._before = before
                _signal.signal(_INTERRUPT, lambda _, frame: self._came.append(frame))

    def __exit__(self, *raised: object) -> None:
        if self._before is not None:
            _signal.signal(_INTERRUPT, self._before)
            if self._came:
                self._before(_INTERRUPT, self._came[0])
