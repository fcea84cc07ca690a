"""A fork waits until no other thread is in the middle of importing isostep.

Python's locks of half imported modules go into the child as they are, held by a thread that is not
there: an import in the child would wait for ever.
"""

from __future__ import annotations

import os
import sys
import time

PATIENCE = 30.0
"""Seconds that a fork waits at most, for imports, steps and the compiler."""


def _importing() -> bool:
    modules = list(sys.modules.items())
    return any(
        getattr(getattr(module, "__spec__", None), "_initializing", False)
        for name, module in modules
        if name == "isostep" or name.startswith("isostep.")
    )


def _before_fork() -> None:
    end = time.monotonic() + PATIENCE
    while _importing() and time.monotonic() < end:
        time.sleep(0.002)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork)
