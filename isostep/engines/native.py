"""The CPU engine: generated kernels over a table of addresses.

A cohort's tables are built once: chunks, shapes and the addresses of all arrays. A step refreshes
the column of gradient addresses and the scalars, and calls each pass once for all tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
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
from isostep.engines import processors
from isostep.engines.cohort import Cohort, Floats
from isostep.engines.meanwhile import Meanwhile
from isostep.engines.threads import HOST, Crew

Table = NDArray[np.int64]

SERIAL_BELOW = 1 << 14  # elements: under this, waking threads costs more than they save


@functools.lru_cache(maxsize=1024)
def _written(
    schedule: Schedule,
    arrays: tuple[Array, ...],
    layout: walk.Layout,
    title: str,
) -> tuple[str, int]:
    """The source of a kernel, and how many bytes of scratch memory each call of it needs."""
    form = schedule, list(arrays), layout
    return write_module(*form, title), scratch_bytes(*form)


def _source_of(cohort: Cohort) -> tuple[str, int]:
    return _written(cohort.schedule, tuple(cohort.arrays), cohort.layout, cohort.title)


def prepare(cohorts: Sequence[Cohort], crew: Crew) -> None:
    """Compile the kernels of several cohorts, as many at once as threads may work."""
    sources = [(_source_of(cohort)[0], FLUSHING) for cohort in cohorts]
    machine_code.prepare(sources, min(crew.count(), processors.usable().count))


class NativeRunner:
    """A cohort with its machine code and tables.

    Args:
        cohort: the tensors.
        addresses: address of each array, of shape (tensors, arrays); the column of an array that
            is given anew each step may hold anything until `refresh`.
        crew: the threads that it runs on.

    Where the compiler would be waited for too long, array code takes the steps until it is done.
    """

    def __init__(self, cohort: Cohort, addresses: Table, crew: Crew = HOST) -> None:
        self.cohort, self.crew = cohort, crew
        self.addresses = np.ascontiguousarray(addresses, dtype=np.int64)
        self.source, scratch = _source_of(cohort)
        self._walk = _Walk(cohort, scratch)
        self._guards = flushing.bounds(cohort.guards, cohort.arrays)
        self.flushes = False
        self.kernel: machine_code.Kernel | None = None
        self._passes: list[_PassTables] = []
        self._meanwhile: Meanwhile | None = None
        if machine_code.is_behind(self.source, FLUSHING):
            self._meanwhile = Meanwhile(cohort, self.addresses)
        else:
            self._bind()

    def _bind(self) -> None:
        """Point the kernel at its tables."""
        self.kernel = kernel = machine_code.build(self.source, FLUSHING)
        tables = {
            "arrays": self.addresses,
            "shapes": np.ascontiguousarray(self.cohort.extents[:, 1:]),
            "chunks": self._walk.chunks,
            "tasks": self._walk.tasks,
            "column_sums": self._walk.column_sums,
        }
        passes = range(len(self.cohort.schedule.passes))
        self._passes = [
            _PassTables(self, kernel.addresses, self._walk, tables, number) for number in passes
        ]
        self._meanwhile = None

    @property
    def engine(self) -> str:
        """What takes the steps now."""
        return "native" if self._meanwhile is None else "array"

    def of(self, places: NDArray[np.intp]) -> NativeRunner:
        """A runner of some of the tensors; see `cohort.Runner`."""
        return NativeRunner(self.cohort.of(places), self.addresses[places], self.crew)

    def refresh(self, name: str, addresses: Table) -> None:
        """Set the addresses of array `name`, one for each tensor."""
        self.addresses[:, self.cohort.column(name)] = addresses

    def begin(self, coefficients: dict[str, Any]) -> None:
        """Decide whether the passes of this step flush denormal numbers, and who runs them."""
        if self._meanwhile is not None:
            if machine_code.is_behind(self.source, FLUSHING):
                self._meanwhile.begin()
                return
            self._bind()
        flushes = flushing.unfelt(self._guards, coefficients)
        if flushes is not self.flushes:
            for tables in self._passes:
                tables.flush(flushes)
            self.flushes = flushes

    def run(self, number: int, scalars: list[Any], progress: Progress) -> list[Floats]:
        """Run one pass; see `cohort.Runner`."""
        if self._meanwhile is not None:
            return self._meanwhile.run(number, scalars, progress)
        return self._passes[number].run(scalars, progress)


class _Walk:
    """How the elements of a cohort are walked: its chunks, and which thread takes which.

    Args:
        cohort: the tensors.
        scratch: bytes of memory of its own that each call of a kernel needs.
    """

    def __init__(self, cohort: Cohort, scratch: int) -> None:
        self._cohort, self._scratch_bytes = cohort, scratch
        self.tasks = np.zeros((0, len(walk.COLUMN_TASK)), dtype=np.int64)
        column_sums = 0
        if cohort.layout == "flat":
            self.chunks = walk.flat_chunks(cohort.sizes)
        elif cohort.layout == "lanes":
            self.chunks = walk.lanes_chunks(cohort.extents)
        else:
            most = _sums_per_column(cohort)
            self.chunks, self.tasks, column_sums = walk.rows_chunks(cohort.extents, most)
        self.column_sums = np.zeros(column_sums)
        # The first chunk of each tensor: chunks stand in the order of tensors.
        tensors = np.arange(len(cohort.shapes))
        self.first_chunks = np.searchsorted(self.chunks[:, 0], tensors)
        self._serial = cohort.sizes.sum() < SERIAL_BELOW
        self._bounds: dict[tuple[int, bool], Table] = {}
        self._scratch: list[NDArray[np.uint8]] = []

    def bounds(self, tasks: bool, crew: Crew) -> Table:
        """Chunks (or column tasks) cut into one contiguous range for each thread, of equal work."""
        threads = 1 if self._serial else crew.count()
        key = (threads, tasks)
        if key not in self._bounds:
            bounds = _cut(self._work(tasks), threads)
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
        table = self.tasks if tasks else self.chunks
        _, rows, columns = self._cohort.extents[table[:, 0]].T
        if tasks:
            return (columns * table[:, 3]).astype(np.float64)
        if self._cohort.layout == "flat":
            return table[:, 2].astype(np.float64)
        if self._cohort.layout == "lanes":
            return ((table[:, 2] - table[:, 1]) * rows * columns).astype(np.float64)
        return ((table[:, 3] - table[:, 2]) * columns).astype(np.float64)


class _PassTables:
    """The tables of one pass."""

    def __init__(
        self,
        runner: NativeRunner,
        code: dict[str, int],
        walked: _Walk,
        tables: dict[str, NDArray[Any]],
        number: int,
    ) -> None:
        cohort = runner.cohort
        step = cohort.schedule.passes[number]
        dtype = np.float64 if cohort.compute_dtype == "float64" else np.float32
        # One row of scalars for each tensor; never empty, so that it has an address.
        self._scalars = np.zeros((len(cohort.shapes), len(step.scalars)), dtype)
        self._sums = np.zeros((len(walked.chunks), len(step.tensor_sums)))
        self._walk, self._crew = walked, runner.crew
        self._tables = tables | {"scalars": self._scalars, "tensor_sums": self._sums}
        addresses = [self._tables[name].ctypes.data for name in CONTEXT]
        self._context = np.array([*addresses, 0], dtype=np.int64)  # the last at FLUSHING
        self._context_address = int(self._context.ctypes.data)
        self._sweep = code[f"pass_{number}"]
        self._columns = code.get(f"columns_{number}")

    def flush(self, on: bool) -> None:
        """Say whether denormal numbers are flushed from now on."""
        self._context[FLUSHING] = on

    def run(self, scalars: list[Any], progress: Progress) -> list[Floats]:
        walked = self._walk
        for k, value in enumerate(scalars):
            self._scalars[:, k] = value
        bounds = walked.bounds(False, self._crew)
        self._crew.run(self._sweep, bounds, self._context_address, progress.call)
        if self._columns is not None:
            bounds = walked.bounds(True, self._crew)
            self._crew.run(self._columns, bounds, self._context_address, progress.call)
        if not self._sums.size:
            return []
        return list(np.add.reduceat(self._sums, walked.first_chunks, axis=0).T)


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
