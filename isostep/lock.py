"""The lock of an optimizer: its steps, loads and edits come one after the other.

An optimizer that two threads step at once would write one set of arrays, tables and counts from
both. Every front-end takes this lock around whatever reads or writes them.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

_P = ParamSpec("_P")
_Self = TypeVar("_Self", bound=Any)
_T = TypeVar("_T")


# Its `with` runs no Python code in which an exception could leave it held.
_RLock: Any = type(threading.RLock())


class Lock(_RLock):
    """A re-entrant lock, for `with`.

    It is no part of what holds it: a copy or a pickle of an optimizer has a lock of its own, which
    nobody holds. A fork waits until other threads have let go of it (`forks.py`).

    Args:
        inner: it is taken by those who hold others, and never the other way round.
    """

    def __init__(self, inner: bool = False) -> None:
        (_inner if inner else _outer).add(self)

    def __new__(cls, inner: bool = False) -> Lock:
        return _RLock.__new__(cls)

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return Lock, ()

    def __copy__(self) -> Lock:
        return Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Lock:
        return Lock()


def under(lock: Lock, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a function under a lock.

    An exception may strike between any two instructions, so also before a `with` lets go of the
    lock: that is done twice.
    """
    held = lock._is_owned()
    try:
        with lock:
            return function(*args, **kwargs)
    finally:
        while not held and lock._is_owned():
            lock.release()


def locked(
    method: Callable[Concatenate[_Self, _P], _T],
) -> Callable[Concatenate[_Self, _P], _T]:
    """A method that runs under the `_lock` of its object."""

    @functools.wraps(method)
    def under_lock(self: _Self, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return under(self._lock, method, self, *args, **kwargs)

    return under_lock


_outer: weakref.WeakSet[Lock] = weakref.WeakSet()
_inner: weakref.WeakSet[Lock] = weakref.WeakSet()


def made() -> list[Lock]:
    """All locks, in an order in which one thread may take them."""
    while True:
        try:
            return [*_outer, *_inner]
        except RuntimeError:  # another thread has just made one
            continue
