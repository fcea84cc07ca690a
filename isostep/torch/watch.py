"""Whether tensors and dicts are what they were when a binding was made.

Kernels write by raw address, so before each step everything that they would touch is looked at: the
kind of each tensor, its dtype, sizes and strides, where it lies and how much memory is there.
Nothing is kept alive, exported or marked for it: users may move, resize and replace whatever they
like, and the next look tells. It is one call of machine code where `raw` knows the offsets;
elsewhere torch is asked.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

from isostep.engines.objects import Same, compared, each
from isostep.torch import raw


def tensors(watched: list[torch.Tensor]) -> Same:
    """A look at tensors with memory of their own; see `tensors.oddity` for those without.

    Args:
        watched: the tensors; the list must not be changed.
    """
    found = raw.offsets()
    return _asked(watched) if found is None else _seen(watched, found)


def facts(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What is looked at of one tensor, asked of torch."""
    memory = tensor.untyped_storage()
    return (
        type(tensor),
        raw.keys(tensor),
        tensor.dtype,
        tensor.shape,
        tensor.stride(),
        tensor.data_ptr(),
        memory.nbytes(),
    )


def _asked(watched: list[torch.Tensor]) -> Same:
    before = list(map(facts, watched))

    def same() -> bool:
        try:
            return list(map(facts, watched)) == before
        except (RuntimeError, NotImplementedError):  # one has no memory any more
            return False

    return same


def _seen(watched: list[torch.Tensor], found: raw.Offsets) -> Same:
    source = _tensors_source(found)
    known = len(_words(found))
    rows = np.zeros(sum(known + 2 * t.ndim for t in watched), dtype=np.int64)
    return compared(source, "tensors", watched, rows)


# -- sources -------------------------------------------------------------------------------------

_HEAD = """
from isostep.compile.intrinsics import float16_at, int64_at

"""
_TENSORS = """

def {name}_tensors(low, high, context):
    w = int64_at(context)
    items = int64_at(int64_at(w[0])[{at.items}])
    rows = int64_at(w[1])
    verdict = int64_at(w[2])
    here = 0
    for k in range(low, high):
        object = int64_at(items[k])
        impl = int64_at(object[{at.impl}])
        halves = float16_at(object[{at.impl}])
        owner = int64_at(impl[{at.storage}])
{words}
        here += {count}
        ndim = impl[{at.ndim}]
        lengths = int64_at(object[{at.impl}] + 8 * ({at.ndim} + 1))
        room = {inline}
        if ndim > {inline}:
            lengths = int64_at(impl[{at.ndim} + 1])
            room = ndim
        for axis in range(ndim):
{axis}
        here += 2 * ndim
    verdict[0] = 1
"""


def _words(at: raw.Offsets) -> list[str]:
    """What is looked at of one tensor, besides sizes and strides. The order matters: each is read
    only if those before it are as they were, so that no address is followed that may be stale."""
    of_object = [f"object[{at.kind}]", f"object[{at.impl}]"]
    of_tensor = [f"impl[{place}]" for place in (at.storage, at.keys, at.start, at.ndim)]
    of_storage = [f"owner[{place}]" for place in range(at.data, at.nbytes + 1)]
    return [*of_object, *of_tensor, f"halves[{at.dtype}]", *of_storage]


@functools.cache
def _tensors_source(at: raw.Offsets) -> str:
    words = _words(at)
    axis = ["lengths[axis]", "lengths[room + axis]"]
    return _HEAD + "".join(
        _TENSORS.format(
            name=name,
            at=at,
            inline=raw.INLINE,
            count=len(words),
            words=each(name, 8, words, "here + {k}"),
            axis=each(name, 12, axis, "here + 2 * axis + {k}"),
        )
        for name in ("record", "compare")
    )
