"""Numbers that carry a bound of their rounding error, so that tolerances are derived, not tuned.

A recipe is written for any namespace. Run here, on `Bounded` numbers, it yields beside each value
the error that its own expressions can have gathered in an arithmetic of unit roundoff u: every
operation adds u times its result and passes on the errors of its operands (running error analysis:
Wilkinson 1965; Higham, "Accuracy and stability of numerical algorithms", section 3.3). Below the
smallest normal number a result adds half the distance of two denormal ones, or the smallest normal
number if it may be flushed to zero. A fused multiply-add rounds once where two roundings are
counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

import isostep
from isostep import flushing
from isostep import recipe as recipes
from isostep.compile.arrays import Array
from isostep.compile.layout import SUM_BLOCK
from isostep.rules.base import SCALARS

from .table import UNIT_ROUNDOFF

SMALLEST = {
    "float64": 2.0**-1022,
    "float32": 2.0**-126,
    "float16": 2.0**-14,
    "bfloat16": 2.0**-126,
}


class Arithmetic(NamedTuple):
    """How numbers are rounded.

    Args:
        dtype: of results.
        flushes: whether what is smaller than the smallest normal number may become zero.
    """

    dtype: str
    flushes: bool = False

    @property
    def unit(self) -> float:
        return UNIT_ROUNDOFF[self.dtype]

    @property
    def least(self) -> float:
        """The error of a result however small it is; denormal numbers are as far apart as the
        smallest normal ones."""
        smallest = SMALLEST[self.dtype]
        # Of float64 half the distance of two denormal numbers is no number any more.
        return smallest if self.flushes else max(smallest * self.unit, 2.0**-1074)


FIRST_ORDER = 1.0 + 1e-6  # the bound is computed in float64 itself


class Bounded:
    """A value and a bound of the absolute error that a computed one may have."""

    __array_ufunc__ = None  # NumPy's operators leave the work to this class

    def __init__(self, value: Any, error: Any, arithmetic: Arithmetic) -> None:
        self.value, self.error, self.arithmetic = value, error, arithmetic

    def rounded(self, value: Any, error: Any) -> Bounded:
        value = np.asarray(value, dtype=np.float64)
        own = self.arithmetic.unit * (np.abs(value) + error) + self.arithmetic.least
        own = np.where((value == 0) & (np.asarray(error) == 0), 0.0, own)  # an exact zero
        return Bounded(value, (error + own) * FIRST_ORDER, self.arithmetic)

    def stored(self, dtype: str) -> Bounded:
        """As it is read again from an array of `dtype`."""
        if dtype == self.arithmetic.dtype:
            return self
        # Conversions to float16 are no part of what is flushed.
        stores = Arithmetic(dtype, self.arithmetic.flushes and dtype != "float16")
        kept = Bounded(self.value, self.error, stores).rounded(self.value, self.error)
        return Bounded(kept.value, kept.error, self.arithmetic)

    def _as(self, other: Any) -> Bounded:
        if isinstance(other, Bounded):
            return other
        return Bounded(np.float64(other), 0.0, self.arithmetic)

    def __neg__(self) -> Bounded:
        return Bounded(-self.value, self.error, self.arithmetic)

    def __add__(self, other: Any) -> Bounded:
        other = self._as(other)
        return self.rounded(self.value + other.value, self.error + other.error)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Bounded:
        if other is self:
            return Bounded(self.value - self.value, 0.0, self.arithmetic)
        return self + -self._as(other)

    def __rsub__(self, other: Any) -> Bounded:
        return self._as(other) + -self

    def __mul__(self, other: Any) -> Bounded:
        other = self._as(other)
        error = (
            np.abs(self.value) * other.error
            + np.abs(other.value) * self.error
            + self.error * other.error
        )
        return self.rounded(self.value * other.value, error)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Bounded:
        other = self._as(other)
        quotient = self.value / other.value
        sure = np.maximum(np.abs(other.value) - other.error, 0.0)
        error = (self.error + np.abs(quotient) * other.error) / sure
        # Exactly zero over anything but zero is exactly zero.
        exact = (self.value == 0) & (self.error == 0) & (sure > 0)
        return self.rounded(quotient, np.where(exact, 0.0, error))

    def __rtruediv__(self, other: Any) -> Bounded:
        return self._as(other) / self

    def __gt__(self, other: Any) -> tuple[Any, Any]:
        other = self._as(other)
        gap = self.value - other.value
        doubt = self.error + other.error
        return gap > 0, (np.abs(gap) > doubt) | (doubt == 0)


class BoundedNamespace:
    """The `xp` of a recipe run on bounded numbers, each of shape (batch, rows, columns).

    Sums over all tensors need all tensors at once: the recipe is run twice, and the sums that it
    asked for the first time are given to it the second time. `swapped`: rows are the last axis.
    """

    def __init__(self, totals: list[Bounded] | None = None, swapped: bool = False) -> None:
        self.totals, self.own = totals, []
        row, column = (1, 2) if swapped else (2, 1)
        self._axes = {"row": (row,), "column": (column,), "matrix": (1, 2), "tensor": (0, 1, 2)}

    def inner(self, x: Bounded, y: Bounded) -> Bounded:
        return x * y

    def sqrt(self, x: Bounded) -> Bounded:
        root = np.sqrt(x.value)
        low = root - np.sqrt(np.maximum(x.value - x.error, 0.0))
        return x.rounded(root, np.maximum(low, np.sqrt(x.value + x.error) - root))

    def maximum(self, x: Any, y: Any) -> Bounded:
        x, y = _both(x, y)
        return x.rounded(np.maximum(x.value, y.value), np.maximum(x.error, y.error))

    def minimum(self, x: Any, y: Any) -> Bounded:
        x, y = _both(x, y)
        return x.rounded(np.minimum(x.value, y.value), np.maximum(x.error, y.error))

    def where(self, condition: tuple[Any, Any], x: Any, y: Any) -> Bounded:
        x, y = _both(x, y)
        chosen, certain = condition
        value = np.where(chosen, x.value, y.value)
        error = np.where(chosen, x.error, y.error)
        either = np.abs(x.value - y.value) + x.error + y.error
        return x.rounded(value, np.where(certain | (either == 0), error, either))

    def isfinite(self, x: Bounded) -> Bounded:
        return Bounded(np.isfinite(x.value).astype(np.float64), 0.0, x.arithmetic)

    def after(self, x: Bounded, decided: Any) -> Bounded:
        return x

    def mean(self, x: Bounded, *, per: str) -> Bounded:
        total = self.sum(x, per=per)
        count = np.size(x.value) / np.size(total.value)
        return x.rounded(total.value / count, total.error / count)

    def sum(self, x: Bounded, *, per: str, name: str = "") -> Bounded:
        if per == "step":
            total = self.sum(x, per="tensor")
            self.own.append(total)
            return total if self.totals is None else self.totals[len(self.own) - 1]
        axis = self._axes[per]
        error = np.broadcast_to(x.error, np.shape(x.value)).sum(axis=axis, keepdims=True)
        # Short blocks are summed in the dtype of the arithmetic, in any order; blocks in float64.
        terms = np.size(x.value) // np.size(error)
        own = min(terms, SUM_BLOCK) * x.arithmetic.unit + terms * UNIT_ROUNDOFF["float64"]
        error = error + own * np.abs(x.value).sum(axis=axis, keepdims=True)
        return x.rounded(x.value.sum(axis=axis, keepdims=True), error)


def _total(sums: Any) -> Bounded:
    """Of one sum over each tensor, exact before it is rounded."""
    value = sum(float(np.sum(s.value)) for s in sums)
    return sums[0].rounded(value, sum(float(np.sum(s.error)) for s in sums))


def _both(x: Any, y: Any) -> tuple[Bounded, Bounded]:
    known = x if isinstance(x, Bounded) else y
    return known._as(x), known._as(y)


_EXACT = Arithmetic("float64")


class Twin:
    """Follows an optimizer step by step and knows how far rounding may have led it astray.

    Args:
        optimizer: any engine's; its state must be exact when the twin is made.
        flushes: whether kernels flush denormal numbers; None: as they decide it.
    """

    def __init__(self, optimizer: isostep.Optimizer, flushes: bool | None = None) -> None:
        self._flushes = flushes
        self._stepper = optimizer._stepper
        self._leaves = [leaf for leaf in self._stepper.leaves if leaf.array.size]
        self._state = {leaf.name: self._exact(leaf) for leaf in self._leaves}

    def _exact(self, leaf: Any) -> dict[str, Bounded]:
        return {
            name: Bounded(array.astype(np.float64).reshape(self._shape(leaf, name)), 0.0, _EXACT)
            for name, array in leaf.arrays.items()
        }

    def _shape(self, leaf: Any, name: str) -> tuple[int, int, int]:
        batch, first, last = leaf.shape3
        shapes = [(batch, first, 1), (batch, 1, last)]
        row, column = reversed(shapes) if leaf.swapped else shapes
        return {"row": row, "column": column}.get(self._stepper.per(name), leaf.shape3)

    def step(self, grads: Mapping[str, Any], loss_scale: float = 1.0) -> None:
        """Take the step that the optimizer is about to take."""
        given = [leaf for leaf in self._leaves if grads[leaf.name] is not None]
        idle = [leaf for leaf in self._leaves if grads[leaf.name] is None]
        with np.errstate(all="ignore"):
            first = [self._run(leaf, grads, loss_scale, None) for leaf in given]
            totals = [_total(sums) for sums in zip(*(own for _, own in first), strict=True)]
            for leaf in given:
                self._keep(leaf, self._run(leaf, grads, loss_scale, totals)[0])
            if self._stepper.options.ema and self._stepper.dialect.averaging.without_gradient:
                for leaf in idle:
                    self._keep(leaf, self._run(leaf, grads, loss_scale, None)[0])

    def _keep(self, leaf: Any, stores: dict[str, Bounded]) -> None:
        for name, value in stores.items():
            self._state[leaf.name][name] = value.stored(leaf.arrays[name].dtype.name)

    def _run(
        self, leaf: Any, grads: Mapping[str, Any], loss_scale: float, totals: Any
    ) -> tuple[dict[str, Bounded], list[Bounded]]:
        g = grads[leaf.name]
        recipe = replace(self._stepper.recipe(leaf), idle=g is None)
        compute = self._arithmetic(leaf, recipe, g, loss_scale)
        inputs = {n: Bounded(b.value, b.error, compute) for n, b in self._state[leaf.name].items()}
        if g is not None:
            exact = leaf.dense(g).astype(np.float64).reshape(leaf.shape3)
            inputs["grad"] = Bounded(exact, 0.0, compute)
            if compute.dtype == "float32" and g.dtype == np.float64:
                inputs["grad"] = inputs["grad"].rounded(exact, 0.0)
        xp = BoundedNamespace(totals, leaf.swapped)
        result = recipes.step(xp, recipe, inputs, self._coefficients(leaf, compute, loss_scale))
        if recipe.master and "param" in result.stores:
            result.stores["model"] = result.stores["param"]
        return result.stores, xp.own

    def _arithmetic(self, leaf: Any, recipe: Any, g: Any, loss_scale: float) -> Arithmetic:
        dtype = "float64" if leaf.array.dtype == np.float64 else "float32"
        if self._flushes is not None:
            return Arithmetic(dtype, self._flushes)
        arrays = [Array(name, array.dtype.name) for name, array in leaf.arrays.items()]
        arrays += [] if g is None else [Array("grad", g.dtype.name)]
        needed = flushing.bounds(flushing.guards(recipe), arrays)
        return Arithmetic(dtype, flushing.unfelt(needed, self._numbers(leaf, loss_scale)))

    def _numbers(self, leaf: Any, loss_scale: float) -> dict[str, Any]:
        stepper = self._stepper
        index = stepper.leaves.index(leaf)
        counts = stepper.dialect.steps_per == "parameter"
        t = int(stepper.steps[index] if counts else stepper.iteration) + 1
        return stepper._fold(loss_scale, SCALARS, leaf.group, float(t), leaf.array.dtype.name)

    def _coefficients(self, leaf: Any, compute: Arithmetic, loss_scale: float) -> SimpleNamespace:
        """Rounded to the dtype of the arithmetic where a kernel reads them."""
        found: dict[str, Bounded] = {}
        for name, exact in self._numbers(leaf, loss_scale).items():
            rounded = float(getattr(np, compute.dtype)(exact))
            if compute.flushes and abs(rounded) < SMALLEST[compute.dtype]:
                rounded = 0.0
            found[name] = Bounded(np.float64(exact), abs(rounded - exact), compute)
        return SimpleNamespace(**found)

    def bounds(self) -> dict[str, Any]:
        """The bound of each array's error, named and shaped as `table.state_of` does."""
        found: dict[str, Any] = {}
        for leaf in self._stepper.leaves:
            master = "model" in leaf.arrays
            for name in leaf.arrays:
                if name not in self._state.get(leaf.name, {}):
                    continue
                shown = f"{leaf.name}.{name}"
                if name == "param":
                    shown = f"{leaf.name}.master" if master else leaf.name
                elif name == "model":
                    shown = leaf.name
                error = self._state[leaf.name][name].error
                dense = np.broadcast_to(error, self._shape(leaf, name)).reshape(-1)
                found[shown] = leaf.view(dense, self._stepper.per(name))
        return found
