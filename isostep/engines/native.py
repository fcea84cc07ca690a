"""The CPU engine: generated kernels over a table of addresses.

A cohort's tables are built once: chunks, shapes and the addresses of all arrays. A step refreshes
the column of gradient addresses and the scalars, and calls each pass once for all tensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from isostep import flushing
from isostep.commit import Progress
from isostep.compile import layout as walk
from isostep.compile import machine_code
from isostep.compile.arrays import Array
from isostep.compile.numba_source import scratch_bytes, write_module
from isostep.compile.pass_writer import CONTEXT, FLUSHING
from isostep.compile.schedule import Schedule
from isostep.engines import threads
from isostep.engines.cohort import Cohort, Floats

Table = NDArray[np.int64]

SERIAL_BELOW = 1 << 14  # elements: under this, waking threads costs more than they save


class NativeRunner:
    """A cohort with its machine code and tables.

    Args:
        cohort: the tensors.
        addresses: address of each array, of shape (tensors, arrays); the column of an array that
            is given anew each step may hold anything until `refresh`.
    """

    engine = "native"

    def __init__(self, cohort: Cohort, addresses: Table) -> None:
        self.cohort = cohort
        self.addresses = np.ascontiguousarray(addresses, dtype=np.int64)
        self.kernel = machine_code.build(self.source, FLUSHING)
        self._shapes = np.array([s[1:] for s in cohort.shapes], dtype=np.int64)
        self._tasks = np.zeros((0, len(walk.COLUMN_TASK)), dtype=np.int64)
        column_sums = 0
        if cohort.layout == "flat":
            self._chunks = walk.flat_chunks([int(s) for s in cohort.sizes])
        elif cohort.layout == "lanes":
            self._chunks = walk.lanes_chunks(cohort.shapes)
        else:
            self._chunks, self._tasks, column_sums = walk.rows_chunks(
                cohort.shapes, _sums_per_column(cohort)
            )
        self._column_sums = np.zeros(column_sums)
        self._dtype = np.float64 if cohort.compute_dtype == "float64" else np.float32
        # The first chunk of each tensor: chunks stand in the order of tensors.
        self._first_chunks = np.unique(self._chunks[:, 0], return_index=True)[1]
        self._bounds: dict[tuple[int, bool], Table] = {}
        self._scratch_bytes = scratch_bytes(*self._form)
        self._scratch: list[NDArray[np.uint8]] = []
        self._guards = flushing.bounds(cohort.guards, cohort.arrays)
        self.flushes = False
        self._passes = [_PassTables(self, number) for number in range(len(cohort.schedule.passes))]

    @property
    def source(self) -> str:
        """The generated source."""
        return write_module(*self._form, self.cohort.title)

    @property
    def _form(self) -> tuple[Schedule, list[Array], walk.Layout, tuple[int, int]]:
        c = self.cohort
        return c.schedule, c.arrays, c.layout, c.shapes[0][1:]

    def refresh(self, name: str, addresses: Table) -> None:
        """Set the addresses of array `name`, one for each tensor."""
        self.addresses[:, self.cohort.column(name)] = addresses

    def begin(self, coefficients: dict[str, Any]) -> None:
        """Decide whether the passes of this step flush denormal numbers."""
        flushes = flushing.unfelt(self._guards, coefficients)
        if flushes is not self.flushes:
            for tables in self._passes:
                tables.flush(flushes)
            self.flushes = flushes

    def run(self, number: int, scalars: list[Any], progress: Progress) -> list[Floats]:
        """Run one pass; see `cohort.Runner`."""
        return self._passes[number].run(scalars, progress)

    def bounds(self, tasks: bool) -> Table:
        """Chunks (or column tasks) cut into one contiguous range for each thread, of equal work."""
        threads_now = threads.thread_count() if self.cohort.sizes.sum() >= SERIAL_BELOW else 1
        key = (threads_now, tasks)
        if key not in self._bounds:
            bounds = _cut(self._work(tasks), threads_now)
            self._bounds[key] = self._with_scratch(bounds) if self._scratch_bytes else bounds
        return self._bounds[key]

    def _with_scratch(self, bounds: Table) -> Table:
        """The ranges, each with the address of scratch memory of its own."""
        size = self._scratch_bytes
        self._scratch.append(np.empty(len(bounds) * size + walk.ALIGNMENT, dtype=np.uint8))
        first = -(-self._scratch[-1].ctypes.data // walk.ALIGNMENT) * walk.ALIGNMENT
        places = first + size * np.arange(len(bounds))
        return np.ascontiguousarray(np.column_stack([bounds, places]))

    def _work(self, tasks: bool) -> Floats:
        table = self._tasks if tasks else self._chunks
        tensor = table[:, 0]
        rows, columns = self._shapes[tensor].T
        if tasks:
            return (columns * table[:, 3]).astype(np.float64)
        if self.cohort.layout == "flat":
            return table[:, 2].astype(np.float64)
        if self.cohort.layout == "lanes":
            return ((table[:, 2] - table[:, 1]) * rows * columns).astype(np.float64)
        return ((table[:, 3] - table[:, 2]) * columns).astype(np.float64)


class _PassTables:
    """The tables of one pass."""

    def __init__(self, runner: NativeRunner, number: int) -> None:
        step = runner.cohort.schedule.passes[number]
        self._runner = runner
        # One row of scalars for each tensor; never empty, so that it has an address.
        self._scalars = np.zeros((len(runner.cohort.shapes), len(step.scalars)), runner._dtype)
        self._sums = np.zeros((len(runner._chunks), len(step.tensor_sums)))
        tables = {
            "chunks": runner._chunks,
            "arrays": runner.addresses,
            "shapes": runner._shapes,
            "scalars": self._scalars,
            "tensor_sums": self._sums,
            "column_sums": runner._column_sums,
            "tasks": runner._tasks,
        }
        addresses = [tables[name].ctypes.data for name in CONTEXT]
        self._context = np.array([*addresses, 0], dtype=np.int64)  # the last at FLUSHING
        self._context_address = int(self._context.ctypes.data)
        code = runner.kernel.addresses
        self._sweep = code[f"pass_{number}"]
        self._columns = code.get(f"columns_{number}")

    def flush(self, on: bool) -> None:
        """Say whether denormal numbers are flushed from now on."""
        self._context[FLUSHING] = on

    def run(self, scalars: list[Any], progress: Progress) -> list[Floats]:
        runner = self._runner
        for k, value in enumerate(scalars):
            self._scalars[:, k] = value
        bounds = runner.bounds(tasks=False)
        threads.run(self._sweep, bounds, self._context_address, progress.call)
        if self._columns is not None:
            bounds = runner.bounds(tasks=True)
            threads.run(self._columns, bounds, self._context_address, progress.call)
        if not self._sums.size:
            return []
        return list(np.add.reduceat(self._sums, runner._first_chunks, axis=0).T)


def _sums_per_column(cohort: Cohort) -> int:
    return max(
        sum(r.domain == "column" for r in step.reductions) for step in cohort.schedule.passes
    )


def _cut(work: Floats, parts: int) -> Table:
    """Cut a row of chunks into at most `parts` contiguous ranges of nearly equal work."""
    total = np.cumsum(work)
    ends = np.searchsorted(total, total[-1] * np.arange(1, parts) / parts, side="left") + 1
    edges = np.unique(np.concatenate([[0], ends, [len(work)]]))
    return np.ascontiguousarray(np.stack([edges[:-1], edges[1:]], axis=1), dtype=np.int64)
