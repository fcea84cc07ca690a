"""Which gradients kernels take where they lie, found in one call.

Paddle allocates gradients anew in each step. One is usual if it is dense and contiguous, has the
shape of its parameter and all its memory, and a dtype that has kernels. Where `raw` does not know
the offsets, Paddle is asked.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray

from isostep.engines.objects import Look
from isostep.paddle import raw
from isostep.paddle.tensors import ONE_PLACE, addresses, on_cpu
from isostep.stepper import DTYPES, as_dtype

_SOURCE = """
from isostep.compile.intrinsics import int64_at


def arrive(low, high, context):
    w = int64_at(context)
    items = int64_at(int64_at(w[0])[{at.items}])
    rows, places, kinds, verdict = int64_at(w[1]), int64_at(w[2]), int64_at(w[3]), int64_at(w[4])
    tensor, dense, codes, sizes = w[5], w[6], int64_at(w[7]), int64_at(w[8])
    here = 0
    for k in range(low, high):
        object = int64_at(items[k])
        if object[{at.kind}] != tensor or object[{at.impl}] == 0:
            return
        impl = int64_at(object[{at.impl}])
        if impl[0] != dense:
            return
        rank, dtype = {rank}, {dtype}
        if rank != rows[here]:
            return
        count = 1
        for axis in range(rank):
            if impl[{at.sizes} + axis] != rows[here + 1 + axis]:
                return
            count *= rows[here + 1 + axis]
        length = 1
        for axis in range(rank - 1, -1, -1):
            size = impl[{at.sizes} + axis]
            if count != 0 and size != 1 and impl[{at.strides} + axis] != length:
                return
            length *= size
        here += 1 + rank
        kind = 0
        while kind < {dtypes} and codes[kind] != dtype:
            kind += 1
        if kind == {dtypes}:
            return
        kinds[k], places[k] = kind, 0
        if count == 0:
            continue
        if impl[{at.memory}] == 0:
            return
        memory = int64_at(impl[{at.memory}])
        start = impl[{at.start}]
        if memory[{at.nbytes}] < start + count * sizes[kind]:
            return
        places[k] = memory[{at.data}] + start
    verdict[0] = 1
"""


class Arrivals:
    """The gradients of some parameters.

    Args:
        params: the parameters.
    """

    def __init__(self, params: Sequence[Any]) -> None:
        self._params, self._look = params, None
        found = raw.offsets()
        if found is None or not ONE_PLACE:
            return
        rows = [number for p in params for number in (len(p.shape), *p.shape)]
        count = len(params)
        self._places = np.zeros(count, dtype=np.int64)
        self._kinds, self._verdict = np.zeros(count, np.int64), np.zeros(1, np.int64)
        codes = np.array(found.codes, dtype=np.int64)
        sizes = np.array([as_dtype(name).itemsize for name in DTYPES], dtype=np.int64)
        tables = (np.array(rows, np.int64), self._places, self._kinds, self._verdict, codes, sizes)
        at = [each.ctypes.data for each in tables]
        words = [0, *at[:4], id(paddle.Tensor), found.dense, *at[4:]]
        halves = {name: found.half("impl", getattr(found, name)) for name in ("rank", "dtype")}
        source = _SOURCE.format(at=found, dtypes=len(DTYPES), **halves)
        self._look = Look(source, "arrive", words, count, tables)

    def look(self, grads: list[Any]) -> tuple[NDArray[np.int64], list[str]] | None:
        """Find the gradients.

        Args:
            grads: one for each parameter.

        Returns:
            The address and the dtype of each; None if one is not usual.
        """
        if self._look is None:
            return _asked(grads, self._params)
        self._look.words[0], self._verdict[0] = id(grads), 0
        self._look.call()
        if not self._verdict[0]:
            return None
        first = int(self._kinds[0]) if len(self._kinds) else 0
        if (self._kinds == first).all():
            return self._places, [DTYPES[first]] * len(grads)
        return self._places, [DTYPES[kind] for kind in self._kinds.tolist()]


Tensor: Any = paddle.Tensor
_dtype = operator.attrgetter("dtype")
_NAMES = {getattr(paddle, name): name for name in DTYPES}


def _asked(grads: list[Any], params: Sequence[Any]) -> tuple[NDArray[np.int64], list[str]] | None:
    """The same, asked of Paddle."""
    usual = (
        all(map(Tensor.is_dense, grads))
        and all(map(Tensor.is_contiguous, grads))
        and all(map(Tensor.is_same_shape, grads, params))
        and (ONE_PLACE or all(map(on_cpu, grads)))
    )
    names: list[Any] = list(map(_NAMES.get, map(_dtype, grads))) if usual else [None]
    return None if None in names else (addresses(grads), names)
