"""The engine of frameworks that compile: a step as plain array code, with nothing written in place.

It evaluates the same passes as the other engines, on arrays of any namespace, and returns the new
arrays. Nothing depends on the values of arrays, so JAX and TensorFlow can trace it: sums over
tensors and the scalars between passes stay arrays. Arrays keep the shape their user gave them; a
factored tensor is reduced along its own axes, so sharded arrays need no new layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any, Protocol

from isostep.compile.schedule import Pass, Schedule
from isostep.compile.trace import Symbol
from isostep.engines.cohort import alike
from isostep.rules.base import SCALARS


class TracedNamespace(Protocol):
    """What an array library must offer. Dtypes are names."""

    def cast(self, x: Any, dtype: str, /) -> Any: ...
    def dtype(self, x: Any, /) -> str: ...
    def apply(self, op: str, args: list[Any], /) -> Any:
        """An elementwise operation, by the name it has in `compile.trace`; on arrays and
        numbers."""
        ...

    def reduce(self, op: str, x: Any, axes: tuple[int, ...], /) -> Any:
        """The `"sum"` or `"mean"` along axes, which stay with length 1."""
        ...

    def reshape(self, x: Any, shape: tuple[int, ...], /) -> Any: ...


@dataclass(frozen=True)
class TracedTensor:
    """One tensor of a step.

    Args:
        schedule: its passes.
        shape: its shape.
        factored_axes: the row and column axis, if the rule keeps factors for it.
        arrays: `grad`, `param`, slots and `average` by name.
        coefficients: by name, numbers or arrays of no dimension.
        dtype: of the arithmetic.
        dtypes: of new arrays, by name, where these are not the dtypes of the old ones.
        present: whether it is stepped at all, a bool array of no dimension; None: it is. Where it
            is not, `grad` has to be zeros.
    """

    schedule: Schedule
    shape: tuple[int, ...]
    factored_axes: tuple[int, int] | None
    arrays: dict[str, Any]
    coefficients: dict[str, Any]
    dtype: str
    dtypes: Mapping[str, str] = field(default_factory=dict[str, str])
    present: Any = None

    def axes(self, node: Symbol) -> tuple[int, ...]:
        """What a reduction to the domain of `node` goes along."""
        if node.domain == "tensor" or self.factored_axes is None:
            return tuple(range(len(self.shape)))
        row, column = self.factored_axes
        along = {"row": (column,), "column": (row,), "matrix": (row, column)}
        return along[node.domain]

    def kept_shape(self, domain: str) -> tuple[int, ...]:
        """The shape of a value of this domain, with length 1 along what it is reduced over."""
        if domain not in ("row", "column") or self.factored_axes is None:
            return self.shape
        row, column = self.factored_axes
        gone = column if domain == "row" else row
        return tuple(1 if axis == gone else n for axis, n in enumerate(self.shape))

    def slot_shape(self, domain: str) -> tuple[int, ...]:
        """The shape of a slot: without what it is reduced over."""
        if domain not in ("row", "column") or self.factored_axes is None:
            return self.shape
        row, column = self.factored_axes
        gone = column if domain == "row" else row
        return tuple(n for axis, n in enumerate(self.shape) if axis != gone)


@dataclass
class TracedOutcome:
    """What a step computes.

    Args:
        stores: for each tensor its new arrays by name, in the dtypes of the old ones.
        blocked: the number of non-finite gradient elements, if the recipe asks; where it is not
            zero the stores are the old arrays.
        statistics: for each tensor its sums by name.
    """

    stores: list[dict[str, Any]]
    blocked: Any | None
    statistics: list[dict[str, Any]]


class _Values:
    """What is known of one tensor so far."""

    def __init__(self, xp: TracedNamespace, tensor: TracedTensor) -> None:
        self.xp, self.tensor, self.schedule = xp, tensor, tensor.schedule
        self.known: dict[int, Any] = {n.index: n.value for n in self.schedule.constants}
        for node in self.schedule.inputs:
            self.known[node.index] = _as(xp, tensor.coefficients[node.name], tensor.dtype)
        self.stores: dict[str, Any] = {}

    def run(self, number: int) -> None:
        known, xp = self.known, self.xp
        for node in self.schedule.host[number]:
            known[node.index] = _apply(xp, node.op, [known[a.index] for a in node.args])
        self._pass(self.schedule.passes[number])

    def _pass(self, step: Pass) -> None:
        xp, tensor = self.xp, self.tensor
        here = dict(self.known)

        def value(node: Symbol) -> Any:
            return node.value if node.op == "constant" else here[node.index]

        for node in step.inputs:
            here[node.index] = self._load(tensor.arrays[node.name], node.domain)
        for node, name in step.carried.items():
            here[node.index] = self._load(self.stores[name], node.domain)
        for node in step.nodes:
            if node.op in ("sum", "mean"):
                reduced = xp.reduce(node.op, value(node.args[0]), tensor.axes(node))
                if node.domain == "tensor":
                    reduced = xp.reshape(reduced, ())
                    self.known[node.index] = reduced
                here[node.index] = reduced
            else:
                here[node.index] = _apply(xp, node.op, [value(a) for a in node.args])
        for name, node in step.stores.items():
            new = xp.reshape(value(node), tensor.slot_shape(node.domain))
            dtype = self.stored(name)
            self.stores[name] = new if dtype is None else xp.cast(new, dtype)

    def stored(self, name: str) -> str | None:
        """The dtype of a new array; None: that of the arithmetic."""
        old = self.tensor.arrays.get(name)
        return self.tensor.dtypes.get(name) or (None if old is None else self.xp.dtype(old))

    def _load(self, array: Any, domain: str) -> Any:
        array = _as(self.xp, array, self.tensor.dtype)
        if domain in ("row", "column"):
            return self.xp.reshape(array, self.tensor.kept_shape(domain))
        return array


class TracedScalars:
    """The namespace of coefficients where the step count is an array: numbers stay numbers.

    Args:
        xp: the namespace of the arrays.
        dtype: what a number becomes where an array decides between two.
    """

    def __init__(self, xp: TracedNamespace, dtype: str) -> None:
        self._xp, self._dtype = xp, dtype

    def __getattr__(self, name: str) -> Any:
        def operation(*args: Any) -> Any:
            if all(isinstance(a, bool | float | int) for a in args):
                return getattr(SCALARS, name)(*args)
            if name == "where":
                args = (args[0], *(self._xp.cast(a, self._dtype) for a in args[1:]))
            return self._xp.apply(name, list(args))

        return operation


def _apply(xp: TracedNamespace, op: str, args: list[Any]) -> Any:
    """An operation, unless coefficients that are numbers decide it: compilers keep `x + 0`."""
    if op == "where" and isinstance(args[0], bool):
        return args[1] if args[0] else args[2]
    neutral = {"add": 0.0, "mul": 1.0}.get(op)
    if neutral is not None:
        for number, other in (args, args[::-1]):
            if isinstance(number, float) and number == neutral:
                return other
    return xp.apply(op, args)


def _as(xp: TracedNamespace, x: Any, dtype: str) -> Any:
    return x if isinstance(x, float | int) else xp.cast(x, dtype)


def step(xp: TracedNamespace, tensors: Sequence[TracedTensor]) -> TracedOutcome:
    """One step of all tensors.

    Args:
        xp: the namespace.
        tensors: what is stepped; sums over tensors are over all of these.
    """
    values = [_Values(xp, t) for t in tensors]
    for number in range(max((len(v.schedule.passes) for v in values), default=0)):
        _combine(values, number)
        for value in values:
            if number < len(value.schedule.passes):
                value.run(number)
    blocked = next(
        (v.known[v.schedule.blocked.index] for v in values if v.schedule.blocked is not None), None
    )
    for value in values:
        if blocked is not None:
            _choose(xp, value, blocked > 0, old_if=True)
        if value.tensor.present is not None:
            _choose(xp, value, value.tensor.present, old_if=False)
    return TracedOutcome([v.stores for v in values], blocked, [_statistics(v) for v in values])


def _choose(xp: TracedNamespace, value: _Values, condition: Any, old_if: bool) -> None:
    """Have a tensor's stores be its old arrays where a condition is as `old_if` says."""
    for name, new in value.stores.items():
        old = value.tensor.arrays[name]
        if name in value.tensor.dtypes:
            old = xp.cast(old, value.tensor.dtypes[name])
        both = [old, new]
        value.stores[name] = xp.apply("where", [condition, *(both if old_if else both[::-1])])


def _statistics(value: _Values) -> dict[str, Any]:
    """A tensor's sums by name: zeros if it is not stepped."""
    present = value.tensor.present
    found = {name: value.known[s.index] for name, s in value.schedule.statistics.items()}
    if present is None:
        return found
    return {name: value.xp.apply("where", [present, x, 0.0]) for name, x in found.items()}


def _combine(values: list[_Values], number: int) -> None:
    """Sums over all tensors that are due before pass `number`."""
    for same in alike([v.schedule.step_sums for v in values], number).values():
        total = reduce(add, [values[k].known[node.args[0].index] for k, node in same])
        for k, node in same:
            value = values[k]
            value.known[node.index] = _as(value.xp, total, value.tensor.dtype)
