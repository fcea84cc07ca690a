"""Which gradients are there, and where, found in one call.

torch allocates gradients anew in each step. A gradient is usual if it is a tensor of the kind,
dtype, sizes and strides of its parameter, has all its memory, and shares none with what a step
writes. Where `raw` does not know the offsets, none is usual, and each is looked at by itself.
"""

from __future__ import annotations

import functools
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from isostep.engines.objects import Look
from isostep.torch import raw
from isostep.torch.overlap import Stretches
from isostep.torch.tensors import reach

ABSENT, USUAL, UNUSUAL = 0, 1, 2

_SOURCE = """
from isostep.compile.intrinsics import float16_at, int64_at


def arrive(low, high, context):
    w = int64_at(context)
    items = int64_at(int64_at(w[0])[{at.items}])
    rows, places, kinds = int64_at(w[1]), int64_at(w[2]), int64_at(w[3])
    none, tensor = w[4], w[5]
    lows, highs, count, totals = int64_at(w[6]), int64_at(w[7]), w[8], int64_at(w[9])
    here = 0
    for k in range(low, high):
        ndim = rows[here]
        row = here
        here += 5 + 2 * ndim
        places[k] = 0
        if items[k] == none:
            kinds[k] = 0
            totals[0] += 1
            continue
        kinds[k] = 2
        object = int64_at(items[k])
        if object[{at.kind}] != tensor:
            totals[1] += 1
            continue
        impl = int64_at(object[{at.impl}])
        halves = float16_at(object[{at.impl}])
        alike = impl[{at.ndim}] == ndim and impl[{at.keys}] == rows[row + 1]
        if not alike or halves[{at.dtype}] != rows[row + 2]:
            totals[1] += 1
            continue
        lengths = int64_at(object[{at.impl}] + 8 * ({at.ndim} + 1))
        room = {inline}
        if ndim > {inline}:
            lengths = int64_at(impl[{at.ndim} + 1])
            room = ndim
        for axis in range(ndim):
            size = lengths[axis]
            if size != rows[row + 5 + 2 * axis]:
                alike = False
            elif size > 1 and lengths[room + axis] != rows[row + 6 + 2 * axis]:
                alike = False
        owner = int64_at(impl[{at.storage}])
        start = impl[{at.start}] * rows[row + 3]
        end = start + rows[row + 4]
        if not alike or owner[{at.nbytes}] < end:
            totals[1] += 1
            continue
        place = owner[{at.data}] + start
        # The first stretch of written memory that ends behind the start of the gradient.
        first = 0
        last = count
        while first < last:
            middle = (first + last) // 2
            if highs[middle] > place:
                last = middle
            else:
                first = middle + 1
        if first < count and lows[first] < place + rows[row + 4]:
            totals[1] += 1
            continue
        kinds[k] = 1
        places[k] = place
"""


class Arrivals:
    """The gradients of some parameters on the CPU.

    Args:
        params: the parameters.
        usual: for each whether a gradient that lies as it does can be read where it lies.
        written: the memory that a step writes to.
        before: what looked for the gradients of the first of them so far.

    Attributes:
        all_there: whether the last look found a gradient for each.
    """

    def __init__(
        self,
        params: list[torch.Tensor],
        usual: list[bool],
        written: Stretches,
        before: Arrivals | None = None,
    ) -> None:
        count = len(params)
        self.all_there = False
        self._places = np.zeros(count, dtype=np.int64)
        self._kinds, self._totals = np.zeros(count, dtype=np.int64), np.zeros(2, dtype=np.int64)
        found = raw.offsets()
        self._look = None
        self._rows = [] if before is None else before._rows[:]
        if found is None:
            return
        new = slice(len(self._rows), None)
        self._rows += map(_row, params[new], usual[new])
        table = np.fromiter(chain.from_iterable(self._rows), dtype=np.int64)
        tables = (table, self._places, self._kinds, written.lows, written.highs, self._totals)
        at = [each.ctypes.data for each in tables]
        words = [0, *at[:3], id(None), id(torch.Tensor), *at[3:5], len(written.lows), at[5]]
        source = _SOURCE.format(at=found, inline=raw.INLINE)
        self._look = Look(source, "arrive", words, count, tables)

    def look(self, grads: list[torch.Tensor | None]) -> tuple[NDArray[np.int64], list[int]]:
        """Find the gradients.

        Args:
            grads: one for each parameter, or None.

        Returns:
            The address of each usual one, and the places of those that are not usual.
        """
        if self._look is None:
            self.all_there = False
            return self._places, list(range(len(grads)))
        self._look.words[0] = id(grads)
        self._totals[:] = 0
        self._look.call()
        absent, unusual = self._totals.tolist()
        self.all_there = not absent and not unusual
        return self._places, np.flatnonzero(self._kinds == UNUSUAL).tolist() if unusual else []


def _row(param: torch.Tensor, usual: bool) -> list[int]:
    """What the gradient of a parameter is compared with; none equals that of an unusual one."""
    keys = raw.keys(param) if usual else 0
    row = [param.ndim, keys, _dtype_word(param.dtype), param.element_size(), reach(param)]
    lengths = zip(param.shape, param.stride(), strict=True)
    return [*row, *(number for pair in lengths for number in pair)]


@functools.cache
def _dtype_word(dtype: torch.dtype) -> int:
    return raw.dtype_word(dtype)
