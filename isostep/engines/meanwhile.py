"""Steps of a cohort until its kernel is compiled: array code on the memory that it will use.

Kernels know arrays by their addresses, whichever framework has made them, and so does this.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isostep.commit import Progress
from isostep.compile.arrays import numpy_dtype
from isostep.engines.array import ArrayRunner, NumpyNamespace
from isostep.engines.cohort import Cohort, Floats

_NUMPY = NumpyNamespace()


class Meanwhile:
    """The passes of a cohort, on arrays at addresses.

    Args:
        cohort: the tensors.
        addresses: as those of a `NativeRunner`, which may change them between two steps.
    """

    def __init__(self, cohort: Cohort, addresses: NDArray[np.int64]) -> None:
        self._cohort, self._addresses = cohort, addresses
        nodes = cohort.schedule.graph.nodes
        domains = {n.name: n.domain for n in nodes if n.op == "input"}
        for step in cohort.schedule.passes:
            domains |= {name: node.domain for name, node in step.stores.items()}
        self._used = [a for a in cohort.arrays if a.name in domains]
        self._domains = domains
        self._runner: ArrayRunner | None = None

    def begin(self) -> None:
        """Look where the arrays lie in this step."""
        places = range(len(self._cohort.shapes))
        self._runner = ArrayRunner(self._cohort, [self._arrays(k) for k in places], _NUMPY)

    def run(self, number: int, scalars: list[Any], progress: Progress) -> list[Floats]:
        """Run one pass; see `cohort.Runner`."""
        assert self._runner is not None
        return self._runner.run(number, scalars, progress)

    def _arrays(self, place: int) -> dict[str, Any]:
        batch, rows, columns = self._cohort.shapes[place]
        lengths = {"row": batch * rows, "column": batch * columns}
        found: dict[str, Any] = {}
        for array in self._used:
            length = lengths.get(self._domains[array.name], math.prod((batch, rows, columns)))
            address = int(self._addresses[place, self._cohort.column(array.name)])
            found[array.name] = _array_at(address, length, numpy_dtype(array.dtype))
        return found


def _array_at(address: int, length: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    memory: Any = (ctypes.c_char * (length * dtype.itemsize)).from_address(address)
    return np.frombuffer(memory, dtype)
