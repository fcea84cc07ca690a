"""Running one function over work items on Numba's thread pools, without importing Numba.

Numba ships its pools as extension modules of their own. Loading one directly costs a few
milliseconds where `import numba` costs hundreds, and calling its `parallel_for` costs about five
microseconds. OpenMP is taken first: it is safe with several Python threads. The fallback, Numba's
work queue, is not, and is entered by one thread at a time. A forked child runs serially, since
OpenMP cannot be used after a fork.

Where a framework has an OpenMP runtime of its own, kernels can be launched on the threads of that
one instead (`share`).
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import functools
import importlib.machinery
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isostep.engines import openmp
from isostep.lock import Lock

_Entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
_entry = functools.cache(_Entry)
_forked = False
_loading = Lock()
_team: openmp.Team | None = None


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Pool:
    """One loaded thread pool."""

    def __init__(self, module: ModuleType, name: str, threads: int) -> None:
        ctypes.CFUNCTYPE(None, ctypes.c_int)(module.launch_threads)(threads)
        self.threads = threads
        self.parallel_for: Callable[..., None] = ctypes.CFUNCTYPE(
            None,
            *[ctypes.c_void_p] * 5,
            ctypes.c_size_t,
            ctypes.c_size_t,
            ctypes.c_int,
        )(module.parallel_for)
        self.guard: contextlib.AbstractContextManager[Any] = (
            contextlib.nullcontext() if name == "omppool" else threading.Lock()
        )


def _available() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not every system has it
        return os.cpu_count() or 1


@functools.cache
def _limit() -> int:
    """The size of the pool: `NUMBA_NUM_THREADS`, else `OMP_NUM_THREADS`, else the processors that
    this process may use."""
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        asked = os.environ.get(name, "").split(",")[0].strip()  # OpenMP takes one for each level
        if asked.isdecimal() and int(asked):
            return int(asked)
    return max(1, _available())


def thread_count() -> int:
    """How many threads the next kernel uses; `numba.set_num_threads` lowers it."""
    if _forked:
        return 1
    # Missing also while another Python thread is still importing Numba.
    threads_of_numba = getattr(sys.modules.get("numba"), "get_num_threads", None)
    return _limit() if threads_of_numba is None else min(_limit(), threads_of_numba())


def share(library: Path) -> None:
    """Launch kernels on the threads of this OpenMP runtime from now on, if it can be used.

    Args:
        library: that a framework runs its own parallel code on.
    """
    global _team
    with contextlib.suppress(OSError, AttributeError):
        _team = openmp.Team(library)


@functools.cache
def _pool() -> _Pool | None:
    with _loading:
        return _loaded()


@functools.cache
def _loaded() -> _Pool | None:
    spec = importlib.util.find_spec("numba")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "np" / "ufunc"
    for name in ("omppool", "workqueue"):
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            path = folder / f"{name}{suffix}"
            with contextlib.suppress(ImportError):
                if path.exists():
                    return _Pool(_load_extension(name, path), name, _limit())
    return None


def _load_extension(name: str, path: Path) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _at_once(function: Callable[..., Any], *columns: Sequence[Any]) -> None:
    collections.deque(map(function, *columns), maxlen=0)


def run(
    address: int,
    bounds: NDArray[np.int64],
    context: int,
    call: Callable[..., None] = _at_once,
) -> None:
    """Call the kernel at `address` for each row (first, end, ...) of `bounds`, on as many threads.

    Args:
        address: a function as `compile.machine_code` loads it.
        bounds: contiguous, of shape (items, words): what the kernel takes before `context`.
        context: the address passed on to the kernel.
        call: calls a function of C for each row of some columns, as `commit.Progress.call` does.
    """
    items, stride = len(bounds), bounds.strides[0]
    if _team is not None and items > 1 and not _forked:
        _team.run(address, bounds, context, call)
        return
    start = int(bounds.ctypes.data)
    pool = _pool() if items > 1 and not _forked else None
    if pool is None:
        rows = [ctypes.c_void_p(start + stride * item) for item in range(items)]
        at, nothing = list(map(ctypes.addressof, rows)), [None] * items
        call(_entry(address), at, nothing, nothing, [context] * items)
        return
    first = ctypes.c_void_p(start)
    counts = ctypes.c_size_t(items)
    steps = ctypes.c_size_t(stride)
    with pool.guard:
        call(
            pool.parallel_for,
            [address],
            [ctypes.addressof(first)],
            [ctypes.addressof(counts)],
            [ctypes.addressof(steps)],
            [context],
            [0],
            [1],
            [items],
        )
