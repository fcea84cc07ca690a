"""Launching kernels on the threads of the OpenMP runtime that the process has.

Two runtimes in one process stand in each other's way: after its last parallel region the threads of
one go on spinning for a while (200 ms in Intel's, which Paddle has), on the processors that the
other needs. A step that follows a backward pass then waits for the scheduler, several times as long
as it works.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isostep.compile import machine_code

# What each thread of a team does: the items whose number is its own, and every so many further on.
_MEMBER = """
define void @member(ptr %work) {
entry:
  %slot = alloca ptr
  %at1 = getelementptr i64, ptr %work, i64 1
  %at2 = getelementptr i64, ptr %work, i64 2
  %at3 = getelementptr i64, ptr %work, i64 3
  %at4 = getelementptr i64, ptr %work, i64 4
  %at5 = getelementptr i64, ptr %work, i64 5
  %at6 = getelementptr i64, ptr %work, i64 6
  %number = load ptr, ptr %work
  %size = load ptr, ptr %at1
  %kernel = load ptr, ptr %at2
  %bounds = load ptr, ptr %at3
  %context = load ptr, ptr %at4
  %items = load i64, ptr %at5
  %words = load i64, ptr %at6
  %own = call i32 %number()
  %team = call i32 %size()
  %first = sext i32 %own to i64
  %stride = sext i32 %team to i64
  br label %check
check:
  %item = phi i64 [ %first, %entry ], [ %next, %body ]
  %more = icmp slt i64 %item, %items
  br i1 %more, label %body, label %done
body:
  %word = mul i64 %item, %words
  %row = getelementptr i64, ptr %bounds, i64 %word
  store ptr %row, ptr %slot
  call void %kernel(ptr %slot, ptr null, ptr null, ptr %context)
  %next = add i64 %item, %stride
  br label %check
done:
  ret void
}
"""


class Team:
    """The threads of one OpenMP runtime.

    Args:
        library: the runtime, which offers GNU's entry points, or something that is linked to it.

    Raises:
        OSError: it cannot be loaded.
        AttributeError: it offers others.
    """

    def __init__(self, library: Path) -> None:
        # The linker finds what the library itself would call, if it is linked to several.
        runtime: Any = ctypes.CDLL(str(library))
        self._parallel = runtime.GOMP_parallel
        self._parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        self._parallel.restype = None
        asked = (runtime.omp_get_thread_num, runtime.omp_get_num_threads)
        self._asked = [int(ctypes.cast(f, ctypes.c_void_p).value or 0) for f in asked]
        self._member = machine_code.assemble(_MEMBER, "member")

    def run(
        self,
        kernel: int,
        bounds: NDArray[np.int64],
        context: int,
        threads: int,
        call: Callable[..., None],
    ) -> None:
        """Call a kernel for each row of `bounds`; see `threads.Crew.run`.

        Args:
            kernel, bounds, context, call: as there.
            threads: the size of the team. Where it is that of the framework's own, the runtime has
                it ready; a smaller one would end threads that the next region must start again.
        """
        items, width = bounds.shape
        words = [*self._asked, kernel, bounds.ctypes.data, context, items, width]
        work = (ctypes.c_int64 * len(words))(*words)
        call(self._parallel, [self._member], [ctypes.addressof(work)], [threads], [0])


@functools.cache
def team(library: Path | None) -> Team | None:
    """The threads of a runtime: that of a library, else one that is loaded, else the system's.

    Args:
        library: the runtime of a framework, or something that is linked to it; None for none.

    Returns:
        None if there is none.
    """
    wanted = [] if library is None else [library]
    for each in [*wanted, *mapped(), Path("libgomp.so.1")]:
        with contextlib.suppress(OSError, AttributeError):
            return Team(each)
    return None


def setting(library: Path) -> Callable[[], int] | None:
    """Reads how many threads a runtime's next team would have; None if it cannot be asked."""
    with contextlib.suppress(OSError, AttributeError):
        return ctypes.CDLL(str(library)).omp_get_max_threads
    return None


_RUNTIME = re.compile(r"lib(?:gomp|iomp5|iomp5md|omp)\b")


def runtime_in(folder: Path) -> Path | None:
    """The OpenMP runtime among some files, whatever this system calls it; None if there is none."""
    found = sorted(path for path in folder.glob("lib*") if _RUNTIME.match(path.name))
    return next(iter(found), None)


def mapped() -> list[Path]:
    """The OpenMP runtimes that the process has loaded, as far as the system tells.

    Windows does not: its runtimes have no GNU entry points.
    """
    listed = {"linux": _linux_images, "darwin": _darwin_images}.get(sys.platform)
    found: list[Path] = []
    if listed is not None:
        with contextlib.suppress(OSError, AttributeError):
            found = [Path(name) for name in dict.fromkeys(listed())]
    return [path for path in found if _RUNTIME.match(path.name)]


def _linux_images() -> list[str]:
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    return re.findall(r" (/.+)$", maps, re.MULTILINE)


def _darwin_images() -> list[str]:
    dyld: Any = ctypes.CDLL(None)
    dyld._dyld_get_image_name.restype = ctypes.c_char_p
    names = map(dyld._dyld_get_image_name, range(dyld._dyld_image_count()))
    return [os.fsdecode(name) for name in names if name]
