"""The array engine: the same passes, computed by any array namespace on whole arrays.

It is the fallback where no kernel can run and the check of those that do. Each pass evaluates the
traced nodes one by one; between passes sums over tensors are combined, as in every engine.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from isostep.commit import Progress
from isostep.compile.schedule import Pass
from isostep.compile.trace import Symbol
from isostep.engines.cohort import Cohort, Floats

_AXIS = {"row": 2, "column": 1}
_MATRIX_AXIS = {"row": 1, "column": 2}


class ArrayNamespace(Protocol):
    """What an array library must offer; `dtype` is `"float32"` or `"float64"`."""

    name: str

    def load(self, array: Any, shape: tuple[int, ...], dtype: str, /) -> Any:
        """A new array of `shape` and `dtype` with the elements of `array`."""
        ...

    def store(self, array: Any, value: Any, /) -> None:
        """Write `value` into `array`, in its own shape and dtype."""
        ...

    def scalar(self, value: float, dtype: str, /) -> Any:
        """A number that takes part in arithmetic of `dtype`."""
        ...

    def total(self, x: Any, /) -> float:
        """The sum of all elements, taken in float64."""
        ...

    def reduce(self, op: str, x: Any, axis: int, dtype: str, /) -> Any:
        """The `"sum"` or `"mean"` along an axis, which stays with length 1; in float64, as
        `dtype`."""
        ...

    def apply(self, op: str, args: list[Any], /) -> Any:
        """An elementwise operation, by the name it has in `compile.trace`."""
        ...


class NumpyNamespace:
    """NumPy arrays, written in place."""

    name = "NumPy"

    def load(self, array: Any, shape: tuple[int, ...], dtype: str) -> Any:
        return array.reshape(shape).astype(dtype)

    def store(self, array: Any, value: Any) -> None:
        array[...] = value.astype(array.dtype).reshape(array.shape)

    def scalar(self, value: float, dtype: str) -> Any:
        return np.dtype(dtype).type(value)

    def total(self, x: Any) -> float:
        return float(np.sum(x, dtype=np.float64))

    def reduce(self, op: str, x: Any, axis: int, dtype: str) -> Any:
        reduce = np.sum if op == "sum" else np.mean
        return reduce(x, axis=axis, keepdims=True, dtype=np.float64).astype(dtype)

    def apply(self, op: str, args: list[Any]) -> Any:
        return _NUMPY[op](*args)


OPERATORS: dict[str, Any] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "neg": lambda x: -x,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "after": lambda x, decided: x,
}
"""The operations that are Python operators in every namespace."""

_NUMPY: dict[str, Any] = OPERATORS | {
    "sqrt": np.sqrt,
    "abs": np.abs,
    "sign": np.sign,
    "isfinite": lambda x: np.isfinite(x).astype(x.dtype),
    "maximum": np.maximum,
    "minimum": np.minimum,
    "where": np.where,
}


class ArrayRunner:
    """A cohort with its arrays.

    Args:
        cohort: the tensors.
        arrays: for each tensor its arrays by name; in logical order (batch, rows, columns).
        xp: the namespace.
    """

    engine: str = "array"

    def __init__(self, cohort: Cohort, arrays: list[dict[str, Any]], xp: ArrayNamespace) -> None:
        self.cohort, self.arrays, self.xp = cohort, arrays, xp
        self._dtype = cohort.compute_dtype

    @property
    def source(self) -> str:
        """What stands for generated source here."""
        return f"# {self.cohort.title}: evaluated node by node by {self.xp.name}\n"

    def begin(self, coefficients: dict[str, Any]) -> None:
        """Nothing depends on them but what `run` is given."""

    def of(self, places: NDArray[np.intp]) -> ArrayRunner:
        """A runner of some of the tensors; see `cohort.Runner`."""
        arrays = [self.arrays[k] for k in places.tolist()]
        return ArrayRunner(self.cohort.of(places), arrays, self.xp)

    def run(self, number: int, scalars: list[Any], progress: Progress) -> list[Floats]:
        """Run one pass; see `cohort.Runner`."""
        step = self.cohort.schedule.passes[number]
        each = [np.broadcast_to(s, len(self.arrays)) for s in scalars]
        sums: list[list[float]] = []
        for index, arrays in enumerate(self.arrays):
            compute = partial(self._tensor, step, index, [s[index] for s in each])
            sums.append(progress.write(compute, partial(self._store, arrays)))
        return [np.array(column, dtype=np.float64) for column in zip(*sums, strict=True)]

    def _store(self, arrays: dict[str, Any], values: dict[str, Any]) -> None:
        for name, value in values.items():
            self.xp.store(arrays[name], value)

    def _tensor(
        self, step: Pass, index: int, scalars: list[Any]
    ) -> tuple[dict[str, Any], list[float]]:
        """What the pass writes to the arrays of one tensor, and its sums."""
        xp, arrays = self.xp, self.arrays[index]
        shape = self.cohort.shapes[index]
        known: dict[int, Any] = {}

        def value(node: Symbol) -> Any:
            # Python floats take the dtype of the array beside them
            return node.value if node.op == "constant" else known[node.index]

        for node, scalar in zip(step.scalars, scalars, strict=True):
            known[node.index] = xp.scalar(float(scalar), self._dtype)
        given = [(n, n.name) for n in step.inputs] + list(step.carried.items())
        for node, name in given:
            known[node.index] = self._load(arrays[name], node.domain, shape)
        for node in step.nodes:
            if node.op in ("sum", "mean"):
                known[node.index] = self._reduce(node, value(node.args[0]))
            else:
                known[node.index] = xp.apply(node.op, [value(a) for a in node.args])
        stores = {name: value(node) for name, node in step.stores.items()}
        return stores, [known[r.index] for r in step.tensor_sums]

    def _load(self, array: Any, domain: str, shape: tuple[int, int, int]) -> Any:
        batch, rows, columns = shape
        shapes = {"row": (batch, rows, 1), "column": (batch, 1, columns)}
        return self.xp.load(array, shapes.get(domain, shape), self._dtype)

    def _reduce(self, node: Symbol, x: Any) -> Any:
        source = node.args[0].domain
        if node.domain == "tensor":
            return self.xp.total(x)  # a mean is divided by the size when combined
        axis = _MATRIX_AXIS[source] if node.domain == "matrix" else _AXIS[node.domain]
        return self.xp.reduce(node.op, x, axis, self._dtype)
