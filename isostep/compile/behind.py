"""Kernels that are compiled by other processes while steps go on by array code.

That is for slow machines: where the wait is foreseen to be longer than `patience()`.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Callable, Hashable, Iterable

VARIABLE = "ISOSTEP_COMPILE_WAIT"
_PATIENCE = 20.0
_going: dict[Hashable, threading.Thread] = {}


def patience() -> float:
    """Seconds that a step may wait for kernels: 20, or what `ISOSTEP_COMPILE_WAIT` says.

    `inf` always waits, so that all steps have the bits of kernels; 0 never waits.

    Raises:
        ValueError: the variable is no number of seconds.
    """
    given = os.environ.get(VARIABLE, "")
    with contextlib.suppress(ValueError):
        seconds = float(given) if given else _PATIENCE
        if seconds >= 0 and not math.isnan(seconds):
            return seconds
    raise ValueError(f"{VARIABLE}={given!r} is not a number of seconds: write 0, 20 or inf")


def begin(kernels: Iterable[Hashable], work: Callable[[], None]) -> bool:
    """Have a thread of its own see to some kernels; False: no thread could be started."""
    thread = threading.Thread(target=work, name="isostep compiling", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return False
    _going.update(dict.fromkeys(kernels, thread))
    return True


def going(kernel: Hashable) -> bool:
    """Whether a kernel is still being seen to; in a fork nobody does that any more."""
    thread = _going.get(kernel)
    if thread is not None and not thread.is_alive():
        _going.pop(kernel, None)
        return False
    return thread is not None
