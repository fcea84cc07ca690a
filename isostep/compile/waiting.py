"""Saying what a step waits for, if it takes long."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Sequence

from isostep.compile import behind, cache

LONG = 2.0
"""Seconds after which it is said."""

_said = _told = False
_inside = threading.local()


@contextlib.contextmanager
def compiling(titles: Sequence[str]) -> Generator[None]:
    """Say once, in the log `isostep`, that kernels are compiled, if that takes long.

    Args:
        titles: what each kernel is for; empty where it is no optimizer's.
    """
    if _said or getattr(_inside, "open", False):
        yield
        return
    timer = threading.Timer(LONG, _say, [list(titles)])
    timer.daemon = True
    _inside.open = True
    try:
        with contextlib.suppress(RuntimeError):  # no more threads: then it is not said
            timer.start()
        yield
    finally:
        _inside.open = False
        timer.cancel()
        if timer.ident is not None:
            timer.join()


def go_on(titles: Sequence[str], seconds: float) -> None:
    """Say once that steps go on by array code.

    Args:
        titles: what each kernel is for.
        seconds: how long that is going to last, about.
    """
    global _told
    if not _told:
        _told = True
        _warn(
            titles,
            f", which takes about {seconds:.0f} s. Until then array code takes the steps: the same "
            f"numbers within rounding ({behind.VARIABLE}=inf waits for the kernels instead)",
        )


def _say(titles: list[str]) -> None:
    global _said
    if not _said:
        _said = True
        _warn(titles, "")


def _warn(titles: Sequence[str], more: str) -> None:
    import logging

    rules = ", ".join(dict.fromkeys(filter(None, titles)))
    kernels = "a kernel" if len(titles) == 1 else f"{len(titles)} kernels"
    place = cache.kept_in()
    kept = (
        f"kernels are kept in {place}, so that it happens once; `isostep cache warm` does it ahead"
        if place is not None
        else "kernels cannot be kept: set ISOSTEP_CACHE_DIR to a directory that can be written"
    )
    logging.getLogger("isostep").warning(
        f"isostep is compiling {kernels}{f' for this optimizer ({rules})' if rules else ''}{more}; "
        f"{kept}"
    )
