"""The copy limit: a kernel that moves what a step moves, pass by pass, and computes nothing.

It is compiled and run by isostep's own compiler and threads, over chunks of the same size. In each
pass it reads every array that the step reads and writes every array that the step writes. What is
read goes into what is written (or into a sum, where a pass writes nothing), or the compiler would
leave it out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.models import Floats
from benchmarks.timing import Contestant
from isostep.compile import machine_code
from isostep.compile.layout import flat_chunks
from isostep.engines.native import SERIAL_BELOW
from isostep.engines.threads import HOST
from isostep.numpy import Optimizer

NAME = "copy"


def source(reads: int, writes: int) -> str:
    """A module with one function: reads `reads` arrays, writes the first `writes` of them."""
    points = "\n".join(
        f"        a{k} = float32_at(arrays[tensor * {reads} + {k}] + 4 * start)"
        for k in range(reads)
    )
    loads = "\n".join(f"            x{k} = a{k}[i]" for k in range(reads))
    values = [f"x{k}" for k in range(reads)]
    if not writes:
        body = f"            total = accumulate(total, {' + '.join(values)})"
    else:
        # Each value goes to the array before its own; those that are left over go to the last.
        moved = [*values[1:writes], " + ".join([*values[writes:], values[0]])]
        if reads == 1:  # a value stored where it came from would be no store
            moved = ["-x0"]
        body = "\n".join(f"            a{k}[i] = {value}" for k, value in enumerate(moved))
    return f'''"""Moves arrays: reads {reads}, writes {writes}."""

from numpy import float32

from isostep.compile.intrinsics import *


def move(low, high, context):
    tables = int64_at(context)
    table = int64_at(tables[0])
    arrays = int64_at(tables[1])
    sums = float32_at(tables[2])
    for chunk in range(low, high):
        tensor = table[chunk * 3]
        start = table[chunk * 3 + 1]
        length = table[chunk * 3 + 2]
{points}
        total = float32(0)
        for i in range(length):
{loads}
{body}
        sums[chunk] = total
'''


@dataclass
class _Sweep:
    """Arrays of one length per tensor that one pass reads and writes."""

    reads: list[list[Floats]]
    writes: int

    def prepare(self) -> Callable[[], None]:
        sizes = [tensor[0].size for tensor in self.reads]
        chunks = flat_chunks(sizes)
        arrays = np.array([[a.ctypes.data for a in t] for t in self.reads], dtype=np.int64)
        sums = np.zeros(len(chunks), dtype=np.float32)
        context = np.array([t.ctypes.data for t in (chunks, arrays, sums)], dtype=np.int64)
        bounds = _cut(chunks[:, 2])
        code = machine_code.build(source(len(self.reads[0]), self.writes)).addresses["move"]
        keep = (chunks, arrays, sums, context, self.reads)

        def run() -> None:
            assert keep
            HOST.run(code, bounds, context.ctypes.data)

        return run

    @property
    def bytes(self) -> int:
        """What it moves."""
        read = sum(a.nbytes for tensor in self.reads for a in tensor)
        return read + sum(a.nbytes for tensor in self.reads for a in tensor[: self.writes])


def _cut(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """One contiguous range of chunks for each thread, of equal work."""
    parts = HOST.count() if lengths.sum() >= SERIAL_BELOW else 1
    total = np.cumsum(lengths)
    ends = np.searchsorted(total, total[-1] * np.arange(1, parts) / parts) + 1
    edges = np.unique(np.concatenate([[0], ends, [len(lengths)]]))
    return np.ascontiguousarray(np.stack([edges[:-1], edges[1:]], axis=1), dtype=np.int64)


def contestant(optimizer: Optimizer, grads: list[Floats]) -> Contestant:
    """The copy of one step of `optimizer`, on arrays of its own.

    Raises:
        AssertionError: it does not move as many bytes as the optimizer's plan states.
    """
    sweeps = _sweeps(optimizer, grads)
    moved, planned = sum(s.bytes for s in sweeps), optimizer.plan().step_bytes
    assert moved == planned, f"the copy moves {moved} bytes, and the step {planned}"
    runs = [sweep.prepare() for sweep in sweeps]

    def step() -> None:
        for run in runs:
            run()

    return Contestant(NAME, NAME, step)


def _sweeps(optimizer: Optimizer, grads: list[Floats]) -> list[_Sweep]:
    """The passes of all cohorts; arrays of equal roles and lengths go together.

    Which arrays a pass touches is known to no public function, hence the look inside.
    """
    stepper = optimizer._stepper
    grouped: dict[tuple[int, str, int, int], _Sweep] = {}
    for runner in stepper.prepare(tuple("float32" for _ in grads)).runners:
        cohort = runner.cohort
        own = [_copies(stepper.leaves[m], grads[m]) for m in cohort.members]
        for number, step in enumerate(cohort.schedule.passes):
            names = {n.name for n in step.inputs if not n.is_host} | {*step.carried.values()}
            for domain, (read, written) in _by_domain(stepper, names, set(step.stores)).items():
                order = [*sorted(written), *sorted(read - written)]
                key = (number, domain, len(order), len(written))
                assert written <= read
                sweep = grouped.setdefault(key, _Sweep([], len(written)))
                sweep.reads += [[arrays[name] for name in order] for arrays in own]
    return [grouped[key] for key in sorted(grouped)]


def _copies(leaf: Any, grad: Floats) -> dict[str, Floats]:
    return {name: a.copy() for name, a in leaf.arrays.items()} | {"grad": grad.reshape(-1).copy()}


def _by_domain(
    stepper: Any, reads: set[str], writes: set[str]
) -> dict[str, tuple[set[str], set[str]]]:
    """Arrays of a pass that have one length: per element, per row, per column."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for name in reads | writes:
        read, written = found.setdefault(stepper.per(name), (set(), set()))
        if name in reads:
            read.add(name)
        if name in writes:
            written.add(name)
    return found
