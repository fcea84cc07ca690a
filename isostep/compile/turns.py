"""Processes that need the same kernel at once: one compiles it, the others wait for it.

The lock is one of the system's on a file, which ends with the process that holds it, however that
ends. Where there are none (Windows, some network file systems) each process compiles for itself.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Generator
from typing import Any

from isostep.compile.trust import Directory

fcntl: Any  # has nothing on Windows
try:
    import fcntl
except ImportError:
    fcntl = None

PATIENCE = 20.0
"""Seconds that a process waits for another one's kernel; after that it compiles, and waits for no
further one."""
_INTERVAL = 0.02
_FLAGS = os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

_impatient = False


@contextlib.contextmanager
def turn(found: Directory, name: str, given_up: Callable[[], bool]) -> Generator[None]:
    """Hold the lock of entry `name`, as far as there are locks, and as it is not `given_up`.

    Raises:
        OSError: the directory cannot be written.
    """
    if fcntl is None:
        yield
        return
    file = f"{name}.lock"
    descriptor = found.open(file, _FLAGS)
    try:
        held = _wait(descriptor, given_up)
        try:
            yield
        finally:
            if held:  # who has opened it meanwhile gets the lock, and finds the entry
                with contextlib.suppress(OSError):
                    found.remove(file)
    finally:
        os.close(descriptor)


def _wait(descriptor: int, given_up: Callable[[], bool]) -> bool:
    """Whether the lock was had in time."""
    global _impatient
    end = time.monotonic() + (0.0 if _impatient else PATIENCE)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                _impatient = True
                return False
        except OSError:  # not on this file system
            return False
        if given_up():
            return False
        time.sleep(_INTERVAL)
