"""One parameter as the engines see it: dense arrays in the order (batch, rows, columns).

An array whose memory already runs in that order is used where it lies; any other is copied to a
dense stage before a step and back after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isostep.compile.layout import Layout, Shape3, layout_of
from isostep.compile.trace import Matrices
from isostep.rules.base import Domain

AnyArray = NDArray[Any]


@dataclass
class Leaf:
    """A parameter, how its axes are ordered in memory, and its arrays.

    Args:
        name: the parameter's name.
        array: the user's array.
        group: index of its group of hyperparameters.
        factored_axes: the row and column axis, if the rule keeps factors for it.
        own: what steps write to; the array itself, dense, unless an engine has its own kind.
        layer: a leaf that shares memory with others is stepped after those of lower layers.

    Attributes:
        shape: that of the array when it was taken in, which the arrays that are kept go by.
        swapped: whether what the rule calls rows are the columns of the matrices that are walked.
        order: the axes in their order in the memory of what is kept, from the outermost.
        staged: whether the array is copied to dense memory before a step, and back after it.
    """

    name: str
    array: AnyArray
    group: int
    factored_axes: tuple[int, int] | None
    own: Any = None
    arrays: dict[str, AnyArray] = field(default_factory=dict[str, AnyArray])
    layer: int = 0
    shape: tuple[int, ...] = field(init=False)
    dtype: np.dtype[Any] = field(init=False)
    size: int = field(init=False)
    swapped: bool = field(init=False)
    order: tuple[int, ...] = field(init=False)
    in_order: bool = field(init=False)
    staged: bool = field(init=False, default=False)
    shape3: Shape3 = field(init=False)
    layout: Layout = field(init=False)

    def __post_init__(self) -> None:
        self.shape, self.dtype, self.size = self.array.shape, self.array.dtype, self.array.size
        # Kernels walk along the later of the two axes, whichever the rule calls rows.
        self.swapped = self.factored_axes is not None and self.factored_axes != tuple(
            sorted(self.factored_axes)
        )
        self.order = self._axis_order()
        self.in_order = self.order == tuple(range(len(self.shape)))
        self.shape3 = self._shape3()
        self.layout = layout_of(self.shape3, self.factored_axes is not None)
        if self.own is None:
            self.bind()

    def bind(self) -> None:
        """Look where the array lies, which may be elsewhere than before, and otherwise arranged;
        what is kept stays where it is."""
        flags = np.asarray(self.array).transpose(self.order).flags
        self.staged = not (flags.c_contiguous and flags.aligned)
        own = self.dense(self.array)
        for name, array in self.arrays.items():
            if array is self.own:
                self.arrays[name] = own
        self.own = own

    def _axis_order(self) -> tuple[int, ...]:
        axes = range(len(self.shape))
        if self.factored_axes is not None:
            factored = sorted(self.factored_axes)
            return tuple([a for a in axes if a not in factored] + factored)
        # Without rows and columns any order of memory will do.
        return tuple(sorted(axes, key=lambda axis: -self.array.strides[axis]))

    def _shape3(self) -> Shape3:
        if self.factored_axes is None:
            return (1, 1, self.size)
        rows, columns = (self.shape[axis] for axis in self.order[-2:])
        return (self.size // max(1, rows * columns), rows, columns)

    @property
    def matrices(self) -> Matrices:
        """How the graph of a step sees the matrices of this parameter."""
        if self.factored_axes is not None and self.shape3[1:] == (1, 1):
            return "single"
        return "transposed" if self.swapped else "plain"

    def dense(self, array: AnyArray) -> AnyArray:
        """`array` (of the parameter's shape) flat, in this leaf's order; a copy if need be."""
        ordered = np.ascontiguousarray(np.asarray(array).transpose(self.order))
        return (ordered if ordered.flags.aligned else ordered.copy()).reshape(-1)

    def _kept_axes(self, per: Domain) -> list[int]:
        row, column = self.factored_axes or (None, None)
        drop = {"element": None, "row": column, "column": row}[per]
        return [axis for axis in self.order if axis != drop]

    def slot_shape(self, per: Domain) -> tuple[int, ...]:
        """The shape of a slot as users see it: the parameter's, without what it is reduced over."""
        return tuple(self.shape[axis] for axis in sorted(self._kept_axes(per)))

    def order_in_memory(self, per: Domain) -> tuple[int, ...]:
        """The axes of a dense array of this leaf, as users count them, from the outermost."""
        kept = self._kept_axes(per)
        return tuple(sorted(kept).index(axis) for axis in kept)

    def bring_in(self) -> None:
        """Copy a staged parameter to its stage."""
        if self.staged:
            self.own[...] = np.asarray(self.array).transpose(self.order).reshape(-1)

    def take_back(self) -> None:
        """Copy a stage back to its parameter."""
        if self.staged:
            np.asarray(self.array)[...] = self.view(self.own)

    def view(self, dense: AnyArray, per: Domain = "element") -> AnyArray:
        """A dense array of this leaf, seen with the axes in the user's order."""
        kept = self._kept_axes(per)
        back = np.argsort(kept, kind="stable")
        return dense.reshape([self.shape[axis] for axis in kept]).transpose(back)
