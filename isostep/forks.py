"""A fork waits until other threads are out of isostep's imports, steps and compiler.

What they are in the middle of goes into the child as it is, without them. An import in the child
would wait for Python's lock of a half imported module for ever, a compilation for llvmlite's, and
an optimizer would be between two of its arrays.
"""

from __future__ import annotations

import _frozen_importlib

# Hooks of a fork are called in the reverse order: logging takes its lock after this one has waited
# for imports and compilations, which may need it.
import logging  # noqa: F401
import os
import threading
import time

from isostep.lock import Lock, made

PATIENCE = 120.0
"""Seconds that a fork waits at most: importing a framework and compiling the kernels of a step
take long (24 s were measured with ten busy processes on each core), and may fail to end."""

_forking = threading.RLock()  # one fork at a time: `_held` is that of one thread
_held: list[Lock] = []
_waited_in_vain = False
torn = False
"""Whether this process was forked from one that did not come to rest in time. What was being
imported or compiled there will never be whole here, and must not be waited for."""


def _importing() -> bool:
    """Whether another thread imports a part of isostep.

    Python has a lock for each module from before it is looked for until it is whole.
    """
    me = threading.get_ident()
    for name, found in list(getattr(_frozen_importlib, "_module_locks", {}).items()):
        lock = found()
        # A lock that nobody holds may live on, such as in the traceback of an import that failed.
        held = lock is not None and lock.owner not in (None, me)
        if held and name.partition(".")[0] == "isostep":
            return True
    return False


def _before_fork() -> None:
    global _waited_in_vain
    _forking.acquire()
    end = time.monotonic() + PATIENCE
    while True:
        while _importing() and time.monotonic() < end:
            time.sleep(0.002)
        for lock in made():
            if lock.acquire(timeout=max(0.0, end - time.monotonic())):
                _held.append(lock)
        _waited_in_vain = not _quiet()
        if not _waited_in_vain or time.monotonic() >= end:
            return
        _release()


def _quiet() -> bool:
    """Whether nobody has begun anything while the locks were waited for: an import may have made
    one that is held, and brought in what uses it."""
    held = {id(lock) for lock in _held}
    for lock in made():
        if id(lock) not in held:
            if not lock.acquire(blocking=False):
                return False
            _held.append(lock)
    return not _importing()


def _release() -> None:
    while _held:
        _held.pop().release()


def _after_fork() -> None:
    # Python calls this also where it was registered while `_before_fork` would have been called.
    if _forking._is_owned():  # pyright: ignore[reportAttributeAccessIssue]
        _release()
        _forking.release()


def _after_fork_in_child() -> None:
    global torn
    torn = torn or _waited_in_vain
    _after_fork()
    for lock in made():
        if not lock._is_owned():  # the thread that forks lives on, and lets go of its own
            lock._at_fork_reinit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
    )
