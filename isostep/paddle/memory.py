"""What kernels rely on: tensors that lie where they lay, as what they were.

Users of Paddle may give a tensor other memory, another shape, dtype or layout at any time, and
Paddle's own step follows. Before each step all tensors that kernels read or write by address are
compared with what was found when these addresses were taken.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from isostep.engines import objects
from isostep.paddle import raw
from isostep.paddle.tensors import addresses, extent


class Watch:
    """Tensors, and dicts that hold them, as they are now.

    Args:
        tensors: contiguous and in memory.
        held: the dicts that a step finds tensors in.
    """

    def __init__(self, tensors: list[Any], held: list[Any]) -> None:
        self._held = held
        found = raw.offsets()
        self._tensors = _asked(tensors) if found is None else raw.watched(tensors, found)
        self._dicts = objects.dicts(held)

    def same(self, held: list[Any]) -> bool:
        """Whether all are as they were: the same tensors under the same names, and each with the
        same memory, shape and dtype.

        Args:
            held: the dicts of now.
        """
        return (
            len(held) == len(self._held)
            and all(map(operator.is_, held, self._held))
            and self._dicts()
            and self._tensors()
        )


def facts(tensor: Any) -> tuple[Any, ...]:
    """What is looked at of one tensor, asked of Paddle.

    Raises:
        RuntimeError: it has less memory than its shape needs.
    """
    # The address first: a tensor that was cleared has nothing else that could be asked for.
    address = tensor.data_ptr()
    if address is None:
        return ()
    strides, dense = tensor.get_strides(), tensor.is_dense()
    return address, tensor._holder_size(), tensor.dtype, tensor.shape, strides, dense


def _asked(tensors: list[Any]) -> objects.Same:
    before = list(map(facts, tensors))

    def same() -> bool:
        try:
            return list(map(facts, tensors)) == before
        except RuntimeError:
            return False

    return same


def overlapping(tensors: Sequence[Any]) -> tuple[int, int] | None:
    """The places of two tensors between whose first and last elements there are elements of both;
    None if there are no two."""
    sizes = [extent(t) * t.element_size() for t in tensors]
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
