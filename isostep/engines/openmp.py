"""Launching kernels on the threads of an OpenMP runtime that a framework has brought along.

Two runtimes in one process stand in each other's way: after its last parallel region the threads of
one go on spinning for a while (200 ms in Intel's, which Paddle has), on the processors that the
other needs. A step that follows a backward pass then waits for the scheduler, several times as long
as it works.
"""

from __future__ import annotations

import ctypes
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
        library: the runtime, which offers GNU's entry points.

    Raises:
        OSError: it cannot be loaded.
        AttributeError: it offers others.
    """

    def __init__(self, library: Path) -> None:
        runtime: Any = ctypes.CDLL(str(library))
        self._parallel = runtime.GOMP_parallel
        self._parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        self._parallel.restype = None
        asked = (runtime.omp_get_thread_num, runtime.omp_get_num_threads)
        self._asked = [int(ctypes.cast(f, ctypes.c_void_p).value or 0) for f in asked]
        self._member = machine_code.assemble(_MEMBER, "member")

    def run(
        self, kernel: int, bounds: NDArray[np.int64], context: int, call: Callable[..., None]
    ) -> None:
        """Call a kernel for each row of `bounds`; see `threads.run`."""
        items, width = bounds.shape
        words = [*self._asked, kernel, bounds.ctypes.data, context, items, width]
        work = (ctypes.c_int64 * len(words))(*words)
        call(self._parallel, [self._member], [ctypes.addressof(work)], [items], [0])
