"""The array engine: the same passes, computed by any array namespace on whole arrays.

It is the fallback where no kernel can run and the check of those that do. Each pass evaluates the
traced nodes one by one; between passes sums over tensors are combined, as in every engine.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from isostep.compile.schedule import Pass
from isostep.compile.trace import Symbol
from isostep.engines.cohort import Cohort, Floats

_AXIS = {"row": 2, "column": 1}
_MATRIX_AXIS = {"row": 1, "column": 2}


class ArrayRunner:
    """A cohort with its arrays.

    Args:
        cohort: the tensors.
        arrays: for each tensor its arrays by name, dense, in the order (batch, rows, columns).
        xp: the namespace; arrays are written in place.
    """

    engine = "array"

    def __init__(self, cohort: Cohort, arrays: list[dict[str, Any]], xp: Any = np) -> None:
        self.cohort, self.arrays, self.xp = cohort, arrays, xp
        self._dtype = getattr(xp, cohort.compute_dtype)

    @property
    def source(self) -> str:
        """What stands for generated source here."""
        return f"# {self.cohort.title}: evaluated node by node by {self.xp.__name__}\n"

    def run(self, number: int, scalars: list[Any]) -> list[Floats]:
        """Run one pass; see `cohort.Runner`."""
        step = self.cohort.schedule.passes[number]
        each = [np.broadcast_to(s, len(self.arrays)) for s in scalars]
        sums = [
            self._tensor(step, index, [s[index] for s in each]) for index in range(len(self.arrays))
        ]
        return [np.array(column, dtype=np.float64) for column in zip(*sums, strict=True)]

    def _tensor(self, step: Pass, index: int, scalars: list[Any]) -> list[float]:
        xp, arrays = self.xp, self.arrays[index]
        shape = self.cohort.shapes[index]
        known: dict[int, Any] = {}

        def value(node: Symbol) -> Any:
            # Python floats take the dtype of the array beside them
            return node.value if node.op == "constant" else known[node.index]

        for node, scalar in zip(step.scalars, scalars, strict=True):
            known[node.index] = self._dtype(scalar)
        for node in step.inputs:
            known[node.index] = self._load(arrays[node.name], node.domain, shape)
        for node, name in step.carried.items():
            known[node.index] = self._load(arrays[name], node.domain, shape)
        for node in step.nodes:
            if node.op in ("sum", "mean"):
                known[node.index] = self._reduce(node, value(node.args[0]))
            else:
                known[node.index] = _OPERATIONS[node.op](xp, *(value(a) for a in node.args))
        for name, node in step.stores.items():
            array = arrays[name]
            array[...] = value(node).astype(array.dtype).reshape(array.shape)
        return [float(known[r.index]) for r in step.tensor_sums]

    def _load(self, array: Any, domain: str, shape: tuple[int, int, int]) -> Any:
        batch, rows, columns = shape
        shapes = {"row": (batch, rows, 1), "column": (batch, 1, columns)}
        return array.reshape(shapes.get(domain, shape)).astype(self._dtype)

    def _reduce(self, node: Symbol, x: Any) -> Any:
        """Sums are taken in float64, as in the kernels."""
        xp, source = self.xp, node.args[0].domain
        reduce = xp.sum if node.op == "sum" else xp.mean
        if node.domain == "tensor":
            return xp.sum(x, dtype=xp.float64)  # a mean is divided by the size when combined
        axis = _MATRIX_AXIS[source] if node.domain == "matrix" else _AXIS[node.domain]
        return reduce(x, axis=axis, keepdims=True, dtype=xp.float64).astype(self._dtype)


_OPERATIONS: dict[str, Any] = {
    "add": lambda xp, x, y: x + y,
    "sub": lambda xp, x, y: x - y,
    "mul": lambda xp, x, y: x * y,
    "div": lambda xp, x, y: x / y,
    "neg": lambda xp, x: -x,
    "gt": lambda xp, x, y: x > y,
    "ge": lambda xp, x, y: x >= y,
    "sqrt": lambda xp, x: xp.sqrt(x),
    "abs": lambda xp, x: xp.abs(x),
    "sign": lambda xp, x: xp.sign(x),
    "isfinite": lambda xp, x: xp.isfinite(x).astype(x.dtype),
    "maximum": lambda xp, x, y: xp.maximum(x, y),
    "minimum": lambda xp, x, y: xp.minimum(x, y),
    "where": lambda xp, condition, x, y: xp.where(condition, x, y),
    "after": lambda xp, x, decided: x,
}
