"""Which threads kernels run on, and how many.

A front-end's kernels run on as many threads as its framework is set to, on the framework's own
OpenMP runtime. Where there is no framework, or it has no such setting, they run on the processors
that this process may use, or as many as `OMP_NUM_THREADS` says if that is fewer. `set_num_threads`
overrules all of it, for isostep alone. The number goes with each launch; nothing of the process is
set.

A forked child runs serially: an OpenMP runtime that has worked before a fork waits for threads
that are gone.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import functools
import importlib.machinery
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isostep.engines import openmp, processors
from isostep.lock import Lock

_Entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
_entry = functools.cache(_Entry)
_asked_for: int | None = None
_forked = processors.is_fork() and bool(openmp.mapped())


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def set_num_threads(count: int | None) -> None:
    """Have kernels run on so many threads, whatever the framework and the environment say.

    It is for isostep alone, in all its front-ends, from the next step on; a forked child runs
    serially all the same. `optimizer.plan()` shows how many threads there are, and why.

    Args:
        count: at least 1; None to go by the framework's setting again, or by the environment.

    Raises:
        ValueError: no whole number of at least 1.
    """
    global _asked_for
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise ValueError(
            f"set_num_threads({count!r}): use a whole number of at least 1, or None to go by the "
            f"framework's setting"
        )
    _asked_for = count


@dataclass(frozen=True)
class Crew:
    """The threads of a front-end's kernels.

    Args:
        library: of the framework, the OpenMP runtime or something that is linked to it; None where
            it has none.
        asked: reads the framework's own number of threads; None where it has no such setting.
        setting: what its users know that by.
    """

    library: Path | None = None
    asked: Callable[[], int] | None = None
    setting: str = ""

    def count(self) -> int:
        """How many threads the next kernel runs on."""
        if _forked:
            return 1
        if _asked_for is not None:
            return _asked_for
        return processors.usable().count if self.asked is None else max(1, self.asked())

    @property
    def told(self) -> str:
        """How many threads there are, and who says so."""
        count = self.count()
        if _forked:
            why = "this process was forked, and OpenMP cannot be used after a fork"
        elif _asked_for is not None:
            why = "isostep.set_num_threads"
        else:
            why = processors.usable().why if self.asked is None else self.setting
        overrules = "" if _forked or _asked_for else "; isostep.set_num_threads overrules it"
        return f"{count} thread{'s' * (count > 1)}: {why}{overrules}"

    def run(
        self,
        address: int,
        bounds: NDArray[np.int64],
        context: int,
        call: Callable[..., None] | None = None,
    ) -> None:
        """Call the kernel at `address` for each row (first, end, ...) of `bounds`, on all threads.

        Args:
            address: a function as `compile.machine_code` loads it.
            bounds: contiguous, of shape (items, words): what the kernel takes before `context`.
            context: the address passed on to the kernel.
            call: calls a function of C for each row of some columns, as `commit.Progress.call`
                does.
        """
        if len(bounds) == 1 or _forked:
            serially(address, bounds, context, call)
            return
        team = openmp.team(self.library)
        if team is not None:
            team.run(address, bounds, context, self.count(), call or _at_once)
            return
        pool = _pool()
        if pool is None:
            serially(address, bounds, context, call)
        else:
            pool.run(address, bounds, context, call or _at_once)


HOST = Crew()
"""Where there is no framework, or none with a setting."""


def serially(
    address: int,
    bounds: NDArray[np.int64],
    context: int,
    call: Callable[..., None] | None = None,
) -> None:
    """Call the kernel at `address` for each row of `bounds`, here; see `Crew.run`."""
    start, stride = int(bounds.ctypes.data), bounds.strides[0]
    rows = [ctypes.c_void_p(start + stride * item) for item in range(len(bounds))]
    at, nothing = list(map(ctypes.addressof, rows)), [None] * len(rows)
    (call or _at_once)(_entry(address), at, nothing, nothing, [context] * len(rows))


def _at_once(function: Callable[..., Any], *columns: Sequence[Any]) -> None:
    collections.deque(map(function, *columns), maxlen=0)


# -- where there is no OpenMP runtime --------------------------------------------------------------


class _Pool:
    """Numba's own pool of threads, which is entered by one thread at a time."""

    def __init__(self, module: ModuleType) -> None:
        self._size = processors.usable().count
        launch = ctypes.CFUNCTYPE(None, ctypes.c_int)(module.launch_threads)
        launch(self._size)
        self._parallel_for: Callable[..., None] = ctypes.CFUNCTYPE(
            None,
            *[ctypes.c_void_p] * 5,
            ctypes.c_size_t,
            ctypes.c_size_t,
            ctypes.c_int,
        )(module.parallel_for)
        self._guard = Lock(inner=True)

    def run(
        self, address: int, bounds: NDArray[np.int64], context: int, call: Callable[..., None]
    ) -> None:
        """See `Crew.run`. The pool has one place for each thread, and more work than places would
        be lost: it takes a place's worth at a time."""
        start, stride = int(bounds.ctypes.data), bounds.strides[0]
        batches = [bounds[k : k + self._size] for k in range(0, len(bounds), self._size)]
        sizes = list(map(len, batches))
        firsts = [ctypes.c_void_p(start + stride * self._size * k) for k in range(len(batches))]
        counts = list(map(ctypes.c_size_t, sizes))
        steps = ctypes.c_size_t(stride)
        rows, dimensions = list(map(ctypes.addressof, firsts)), list(map(ctypes.addressof, counts))

        def all_of_them(value: int) -> list[int]:
            return [value] * len(batches)

        with self._guard:
            call(
                self._parallel_for,
                all_of_them(address),
                rows,
                dimensions,
                all_of_them(ctypes.addressof(steps)),
                all_of_them(context),
                all_of_them(0),
                all_of_them(1),
                sizes,
            )


_loading = Lock(inner=True)


@functools.cache
def _pool() -> _Pool | None:
    with _loading:
        return _loaded()


@functools.cache
def _loaded() -> _Pool | None:
    # As an extension module of its own: `import numba` costs hundreds of milliseconds.
    spec = importlib.util.find_spec("numba")
    if spec is None or spec.origin is None:
        return None
    folder, name = Path(spec.origin).parent / "np" / "ufunc", "workqueue"
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"{name}{suffix}"
        with contextlib.suppress(ImportError):
            if path.exists():
                return _Pool(_load_extension(name, path))
    return None


def _load_extension(name: str, path: Path) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
