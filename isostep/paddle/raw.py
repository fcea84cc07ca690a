"""Where Paddle keeps what a step looks at: offsets in its tensors, found by comparison.

What stands at an offset is compared with what Paddle says of tensors of many kinds (the probes).
Where one comparison fails, there is no `Offsets`, and Paddle is asked; see `engines.objects`.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from isostep.engines import objects
from isostep.engines.objects import find, first, word
from isostep.stepper import DTYPES

_OBJECT, _TENSOR, _MEMORY = 8, 30, 4  # words that are searched
_RANKS = 9  # Paddle's tensors have at most so many dimensions, and room for them


@dataclass(frozen=True)
class Offsets:
    """Where it stands, in words of eight bytes from the start of each object.

    Args:
        kind, items: in Python's objects and lists; see `engines.objects.Layout`.
        impl: in a tensor's Python object, the tensor.
        dense: in a dense tensor its first word, which tells it from other kinds.
        sizes, strides, start, memory: in a tensor, the first of its sizes and of its strides, its
            offset in its memory in bytes, and its memory.
        rank, dtype: in a tensor, the number of its dimensions and its dtype, in words of four
            bytes.
        data, nbytes: in the memory, its address and the number of its bytes.
        codes: what stands for each dtype that has kernels, in the order of `stepper.DTYPES`.
    """

    kind: int
    items: int
    impl: int
    dense: int
    sizes: int
    strides: int
    start: int
    memory: int
    rank: int
    dtype: int
    data: int
    nbytes: int
    codes: tuple[int, ...]

    @staticmethod
    def half(base: str, place: int) -> str:
        """An expression for a word of four bytes of an object."""
        shift = 32 * (place % 2)
        return f"({base}[{place // 2}] >> {shift}) & 0xFFFFFFFF"


@functools.cache
def offsets() -> Offsets | None:
    """The offsets in this process; None if one of them is not certain."""
    python = objects.layout()
    if python is None:
        return None
    try:
        return _offsets(python)
    except (LookupError, AttributeError, RuntimeError, TypeError, ValueError):
        return None


def _offsets(python: objects.Layout) -> Offsets:
    probes = _probes()
    impl = first(_impl_places(probes))
    bases = [word(id(t), impl) for t in probes]
    if len({word(base, 0) for base in bases}) != 1:
        raise LookupError("kind of tensor")
    start = find(bases, [t._offset() for t in probes], _TENSOR)
    memory, data, nbytes = _memory_places(probes, bases)
    dtype = _dtype_place(impl)
    of_dtypes = [paddle.zeros([3], getattr(paddle, name)) for name in DTYPES]
    return Offsets(
        kind=python.kind,
        items=python.items,
        impl=impl,
        dense=word(bases[0], 0),
        sizes=_row_place(bases, [list(t.shape) for t in probes]),
        strides=_row_place(bases, [t.get_strides() for t in probes]),
        start=start,
        memory=memory,
        rank=_find_half(bases, [len(t.shape) for t in probes]),
        dtype=dtype,
        data=data,
        nbytes=nbytes,
        codes=tuple([_half(word(id(t), impl), dtype) for t in of_dtypes]),
    )


def _probes() -> list[Any]:
    """Tensors of which no two agree in what is looked for."""
    wide = paddle.zeros([8, 9])
    return [
        paddle.zeros([]),
        paddle.zeros([90])._slice(7, 90),
        wide._slice(1, 8),
        paddle.zeros([11, 14])[:, 1::2],
        paddle.create_parameter([11, 13], "float32"),
        paddle.zeros([3, 4, 5], "float64").transpose([2, 1, 0]),
        paddle.zeros([2, 3, 4, 6], "bfloat16"),
        paddle.zeros([2, 2, 3, 4, 7], "int64")._slice(1, 2),
        paddle.zeros([2, 1, 2, 3, 1, 2, 3], "float16"),
        paddle.zeros([6, 5], "complex64").transpose([1, 0]),
    ]


def _impl_places(probes: Sequence[Any]) -> Iterator[int]:
    """The words of a Python object that lead to its tensor: those that two objects share if they
    are of one tensor, and whose target has the sizes."""
    twins: list[Any] = [paddle.Tensor() for _ in probes]
    for probe, twin in zip(probes, twins, strict=True):
        probe._share_underline_tensor_to(twin)
    for place in range(2, _OBJECT):
        found = [word(id(probe), place) for probe in probes]
        shared = [word(id(twin), place) for twin in twins]
        if found == shared and _lead(found, _TENSOR):
            try:
                _row_place(found, [list(t.shape) for t in probes])
            except LookupError:
                continue
            yield place


def _memory_places(probes: Sequence[Any], bases: Sequence[int]) -> tuple[int, int, int]:
    """The word of a tensor that leads to its memory, and there those of the address and size."""
    impl = first(k for k in range(2, _OBJECT) if word(id(probes[0]), k) == bases[0])
    sharing = [probe.detach() for probe in probes]
    others = [word(id(other), impl) for other in sharing]
    for place in range(_TENSOR):
        found = [word(base, place) for base in bases]
        shared = [word(other, place) for other in others]
        if found != shared or not _lead(found, _MEMORY):
            continue
        try:
            data = find(found, [t.data_ptr() - t._offset() for t in probes], _MEMORY)
            return place, data, find(found, [t._holder_size() for t in probes], _MEMORY)
        except LookupError:
            continue
    raise LookupError("memory")


def _lead(found: Sequence[int], words: int) -> bool:
    """Whether words lead to objects of their own, of so many words."""
    apart = len(set(found)) == len(found)
    return apart and all(value % 8 == 0 and objects.mapped(value, words) for value in found)


def _row_place(bases: Sequence[int], expected: Sequence[Sequence[int]]) -> int:
    """The word at which a row of numbers begins in each tensor."""

    def stands(place: int) -> bool:
        rows = zip(bases, expected, strict=True)
        return all([word(b, place + k) for k in range(len(row))] == list(row) for b, row in rows)

    return first(k for k in range(_TENSOR - _RANKS) if stands(k))


def _half(base: int, place: int) -> int:
    return ctypes.c_uint32.from_address(base + 4 * place).value


def _find_half(bases: Sequence[int], expected: Sequence[int]) -> int:
    return first(
        k
        for k in range(2 * _TENSOR)
        if all(_half(b, k) == e for b, e in zip(bases, expected, strict=True))
    )


def _dtype_place(impl: int) -> int:
    """The word of four bytes that dtypes differ in, whatever the shape."""
    names = (*DTYPES, "int64", "int32", "int16", "uint8", "bool", "complex64", "complex128")
    shapes: list[list[int]] = [[], [3], [2, 4]]
    some = [[paddle.zeros(shape, getattr(paddle, name)) for shape in shapes] for name in names]

    def tells(place: int) -> bool:
        seen = [{_half(word(id(t), impl), place) for t in tensors} for tensors in some]
        return all(len(each) == 1 for each in seen) and len(set.union(*seen)) == len(names)

    return first(k for k in range(2 * _TENSOR) if tells(k))


# -- looks -----------------------------------------------------------------------------------------

_TENSORS = """

def {name}_tensors(low, high, context):
    w = int64_at(context)
    items = int64_at(int64_at(w[0])[{at.items}])
    rows = int64_at(w[1])
    verdict = int64_at(w[2])
    here = 0
    for k in range(low, high):
        object = int64_at(items[k])
{object}
        impl = int64_at(object[{at.impl}])
{tensor}
        memory = int64_at(impl[{at.memory}])
{memory}
        here += {count}
        rank = {rank}
        for axis in range(rank):
{axis}
        here += 2 * rank
    verdict[0] = 1
"""


def watched(tensors: list[Any], at: Offsets) -> objects.Same:
    """A look at dense tensors with memory: whether each has the memory, shape, strides and dtype
    that it has now.

    Args:
        tensors: the tensors; the list must not be changed.
        at: the offsets.
    """
    rows = np.zeros(sum(_COUNT + 2 * len(t.shape) for t in tensors), dtype=np.int64)
    return objects.compared(_source(at), "tensors", tensors, rows)


_COUNT = 9


@functools.cache
def _source(at: Offsets) -> str:
    """Each word is read only if those before it are as they were, so that no address is followed
    that may be stale."""
    parts: dict[str, list[str]] = {
        "object": [f"object[{at.kind}]", f"object[{at.impl}]"],
        "tensor": [
            "impl[0]",
            at.half("impl", at.rank),
            at.half("impl", at.dtype),
            f"impl[{at.start}]",
            f"impl[{at.memory}]",
        ],
        "memory": [f"memory[{at.data}]", f"memory[{at.nbytes}]"],
    }
    assert sum(map(len, parts.values())) == _COUNT
    axis = [f"impl[{at.sizes} + axis]", f"impl[{at.strides} + axis]"]
    head = "\nfrom isostep.compile.intrinsics import int64_at\n"
    rank = at.half("impl", at.rank)

    def text(name: str) -> str:
        lines: dict[str, str] = {}
        first_of_part = 0
        for part, words in parts.items():
            place = f"here + {first_of_part} + {{k}}"
            lines[part] = objects.each(name, 8, words, place)
            first_of_part += len(words)
        lines["axis"] = objects.each(name, 12, axis, "here + 2 * axis + {k}")
        return _TENSORS.format(name=name, at=at, count=_COUNT, rank=rank, **lines)

    return head + text("record") + text("compare")
