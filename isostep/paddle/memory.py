"""What kernels rely on: tensors that lie where they lay, as what they were.

Users of Paddle may give a tensor other memory, another shape, dtype or layout at any time, and
Paddle's own step follows. Before each step all tensors that kernels read or write by address are
compared with what was found when these addresses were taken.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from itertools import chain
from typing import Any

import paddle

from isostep.paddle.tensors import addresses

Tensor: Any = paddle.Tensor
_data_ptr, _element_size = Tensor.data_ptr, Tensor.element_size
_is_dense, _is_contiguous = Tensor.is_dense, Tensor.is_contiguous
_is_same_shape = Tensor.is_same_shape
_dtype = operator.attrgetter("dtype")


class Watch:
    """Tensors, and dicts that hold them, as they are now.

    Args:
        params: parameters, contiguous and in memory.
        slots: what is kept for them, likewise.
        numbers: single numbers, whose values are looked at by whoever reads them.
        held: the dicts that a step finds tensors in.
    """

    def __init__(
        self,
        params: Sequence[Any],
        slots: Sequence[Any],
        numbers: Sequence[Any],
        held: Sequence[dict[str, Any]],
    ) -> None:
        self._params, self._numbers = list(params), list(numbers)
        self._tensors = [*params, *slots]
        self._all = [*self._tensors, *numbers]
        self._where = list(map(_data_ptr, self._all))
        self._like = _of_same_shapes(self._tensors)
        self._dtypes = list(map(_dtype, self._tensors))
        self._sizes = list(map(_element_size, numbers))
        self._names = list(chain.from_iterable(held))
        self._values = _values(held)

    def same(self, held: Sequence[dict[str, Any]]) -> bool:
        """Whether all are as they were: the same tensors under the same names, and each with the
        same memory, shape and dtype.

        Paddle itself refuses the address of a tensor that has less memory than its shape needs.

        Args:
            held: the dicts of now.
        """
        values = _values(held)
        if len(values) != len(self._values) or not all(map(operator.is_, values, self._values)):
            return False
        tensors = self._tensors
        try:
            # The address first: a tensor that was cleared has nothing else that could be asked for.
            return (
                list(map(_data_ptr, self._all)) == self._where
                and all(map(_is_dense, self._params))
                and all(map(_is_contiguous, tensors))
                and all(map(_is_same_shape, tensors, self._like))
                and list(map(_dtype, tensors)) == self._dtypes
                and list(map(_element_size, self._numbers)) == self._sizes
                and list(chain.from_iterable(held)) == self._names
            )
        except RuntimeError:
            return False


def _of_same_shapes(tensors: Sequence[Any]) -> list[Any]:
    """For each tensor one of its shape, which is no one's and has hardly any memory."""
    zero = paddle.zeros([])
    shapes = [tuple(tensor.shape) for tensor in tensors]
    made = {
        shape: zero.expand(shape) if shape and math.prod(shape) else paddle.zeros(shape)
        for shape in dict.fromkeys(shapes)
    }
    return [made[shape] for shape in shapes]


def _values(held: Sequence[dict[str, Any]]) -> list[Any]:
    return list(chain.from_iterable(map(dict.values, held)))


def overlapping(tensors: Sequence[Any]) -> tuple[int, int] | None:
    """The places of two contiguous tensors that share memory; None if no two do."""
    sizes = [math.prod(t.shape) * t.element_size() for t in tensors]
    spans = sorted(
        (start, start + size, k)
        for k, (start, size) in enumerate(zip(addresses(tensors).tolist(), sizes, strict=True))
        if size
    )
    _, open_until, longest = spans[0] if spans else (0, 0, 0)
    for start, end, k in spans[1:]:
        if start < open_until:
            return min(longest, k), max(longest, k)
        if end > open_until:
            open_until, longest = end, k
    return None
