"""The headers of many NumPy arrays, looked at in one call.

Users resize arrays, recast, reshape and lock them between two steps, and kernels write by raw
address: before each step every header is looked at. To ask each array from Python costs several
microseconds, which a step over hundreds of small tensors feels. NumPy's C API fixes the fields
behind the object header (`PyArrayObject_fields` in `ndarraytypes.h`), so machine code can read
them; where a probe does not find them as expected, on an interpreter that lays objects out in
another way, Python asks.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isostep.engines.objects import Look

Table = NDArray[np.int64]

_SOURCE = """
from isostep.compile.intrinsics import int64_at

LOW = 0xFFFFFFFF
USUAL = 0x101  # C-contiguous, and aligned
OWNERS = 8  # a view of a view has the first array for its base, but for views of subclasses


def compare(low, high, context):
    words = int64_at(context)
    head, rows, verdict, recording = words[0], int64_at(words[2]), int64_at(words[3]), words[4]
    items = int64_at(int64_at(words[1])[head + 1])
    at = 0
    same = True
    for k in range(low, high):
        array = int64_at(items[k])
        # Type, data, dimensions, shape, strides, owner, dtype and flags, in NumPy's order
        for word in range(8):
            value = array[head - 1 + word]
            if word == 2 or word == 7:
                value = value & LOW
            if recording:
                rows[at + word] = value
            same = same and rows[at + word] == value
        if same:
            shape, strides = int64_at(array[head + 2]), int64_at(array[head + 3])
            for axis in range(rows[at + 2]):
                if recording:
                    rows[at + 8 + 2 * axis], rows[at + 9 + 2 * axis] = shape[axis], strides[axis]
                same = same and rows[at + 8 + 2 * axis] == shape[axis]
                same = same and rows[at + 9 + 2 * axis] == strides[axis]
        at += 8 + 2 * rows[at + 2]
    verdict[0] = 1 if same else 0


def arrive(low, high, context):
    words = int64_at(context)
    head, plain, none = words[0], words[2], words[3]
    items = int64_at(int64_at(words[1])[head + 1])
    expected, known = int64_at(words[4]), int64_at(words[5])
    data, dtypes, unusual = int64_at(words[6]), int64_at(words[7]), int64_at(words[8])
    doubted = int64_at(words[9])
    at = 0
    count = 0
    for k in range(low, high):
        dimensions = expected[at]
        data[k], dtypes[k] = 0, 0
        array = int64_at(items[k])
        same = array[head - 1] == plain and (array[head + 1] & LOW) == dimensions
        same = same and (array[head + 6] & USUAL) == USUAL
        if same:
            shape = int64_at(array[head + 2])
            for axis in range(dimensions):
                same = same and shape[axis] == expected[at + 1 + axis]
        if same:
            # Is its dtype allowed, and does it lie in what its owners, as a view's base, have?
            seen, begin, end = array, 0, 0
            for turn in range(OWNERS):
                place = 0
                while place < known[0] and known[2 + 2 * place] != seen[head + 5]:
                    place += 1
                first, last = seen[head], seen[head]
                if place < known[0]:
                    last += known[3 + 2 * place]
                lengths, strides = int64_at(seen[head + 2]), int64_at(seen[head + 3])
                empty = False
                for axis in range(seen[head + 1] & LOW):
                    reach = (lengths[axis] - 1) * strides[axis]
                    first, last = first + min(reach, 0), last + max(reach, 0)
                    empty = empty or lengths[axis] == 0
                if turn == 0:
                    begin, end = first, last
                    same = place < known[1]
                    if empty:
                        break
                else:
                    same = same and not empty and begin >= first and end <= last
                if seen[head + 4] == 0:
                    break
                seen = int64_at(seen[head + 4])
                if seen[head - 1] != plain:
                    for each in range(doubted[0]):
                        same = same and seen[head - 1] != doubted[1 + each]
                    break
        if same:
            data[k], dtypes[k] = array[head], array[head + 5]
        elif items[k] != none:
            unusual[1 + count] = k
            count += 1
        at += 1 + max(dimensions, 0)
    unusual[0] = count
"""

# How much memory a view needs of its owner depends on the dtypes of both.
_OWNERS = [np.dtype(code) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"]
# Owners that may be resized as well, which Python asks.
_DOUBTED = [memoryview, np.matrix, np.memmap, np.recarray, np.ma.MaskedArray]
_DOUBTED.append(type(np.lib.stride_tricks.as_strided(np.zeros(1)).base))


class Watch:
    """Whether arrays are what they were: the same memory, seen in the same way.

    Args:
        arrays: the arrays; the list must not be changed.
    """

    def __init__(self, arrays: list[Any]) -> None:
        self._arrays = arrays
        self._before: list[Any] = []
        self._compare: Look | None = None
        if usable():
            self._compare, _, self._verdict = _recorded(arrays)
        else:
            self._before = list(map(header, arrays))

    def same(self) -> bool:
        """Whether all arrays are as they were when this was made."""
        if self._compare is None:
            return list(map(header, self._arrays)) == self._before
        self._compare.call()
        return self._verdict[0] == 1


def _recorded(arrays: list[Any]) -> tuple[Look, Table, Table]:
    """What compares the headers of arrays with those of now; these, and where it says the
    result."""
    rows = np.zeros(sum(8 + 2 * a.ndim for a in arrays), dtype=np.int64)
    verdict = np.zeros(1, dtype=np.int64)
    words = [_HEAD, id(arrays), *_addresses(rows, verdict), True]
    # The dtypes as well: another may come to lie where one of them was.
    look = Look(
        _SOURCE, "compare", words, len(arrays), (arrays, rows, verdict, [a.dtype for a in arrays])
    )
    look.call()
    look.words[4] = False
    return look, rows, verdict


class Arrivals:
    """Finds where arrays lie that come anew in each step.

    Args:
        shapes: what is expected of each, dense in this shape; None: none is usual.
        dtypes: what they may have, by the name of each.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, ...] | None], dtypes: dict[str, np.dtype[Any]]
    ) -> None:
        count = len(shapes)
        self.addresses = np.zeros(count, dtype=np.int64)
        """Where the data of each array lies, after `look`; 0 for None and for unusual ones."""
        self.dtypes = np.zeros(count, dtype=np.int64)
        """A number for the dtype of each; 0 for None and for unusual ones."""
        self.names: dict[int, str | None] = {0: None} | {id(d): n for n, d in dtypes.items()}
        """What the numbers mean."""
        self._everyone = list(range(count))
        self._look: Look | None = None
        if not usable():
            return
        form = [(-1,) if s is None else (len(s), *s) for s in shapes]
        expected = np.array([word for words in form for word in words], dtype=np.int64)
        sizes = [w for d in (*dtypes.values(), *_OWNERS) for w in (id(d), d.itemsize)]
        known = np.array([len(sizes) // 2, len(dtypes), *sizes], dtype=np.int64)
        self._unusual = np.zeros(1 + count, dtype=np.int64)
        doubted = np.array([len(_DOUBTED), *map(id, _DOUBTED)], dtype=np.int64)
        tables = [expected, known, self.addresses, self.dtypes, self._unusual, doubted]
        words = [_HEAD, 0, id(np.ndarray), id(None), *_addresses(*tables)]
        self._look = Look(_SOURCE, "arrive", words, count, (*tables, dtypes))

    def look(self, arrays: list[Any]) -> list[int]:
        """Look at the arrays of a step.

        Args:
            arrays: the arrays, or None where there is none.

        Returns:
            The places of those that are not just NumPy arrays as expected.
        """
        look = self._look
        if look is None:
            self.addresses[:] = self.dtypes[:] = 0
            return [k for k in self._everyone if arrays[k] is not None]
        look.words[1] = id(arrays)
        look.call()
        return self._unusual[1 : 1 + int(self._unusual[0])].tolist()


def addresses(arrays: list[Any]) -> Table:
    """Where the data of each array lies."""
    if len(arrays) < _MANY or not usable():
        return np.array([a.ctypes.data for a in arrays], dtype=np.int64)
    rows = _recorded(arrays)[1]
    lengths = [8 + 2 * a.ndim for a in arrays]
    return rows[np.cumsum([1, *lengths[:-1]])]


def _addresses(*tables: Table) -> list[int]:
    return [int(t.ctypes.data) for t in tables]


def header(array: Any) -> tuple[Any, ...]:
    """What of an array says which memory it sees, and how."""
    return (
        type(array),
        array.ctypes.data,
        0 if array.base is None else id(array.base),
        id(array.dtype),
        array.flags.num,
        array.shape,
        array.strides,
    )


_MANY = 64  # arrays from which on one call is worth being got ready
_HEAD = object.__basicsize__ // 8  # words before the fields of an array


@functools.cache
def usable() -> bool:
    """Whether the fields of some arrays are found where this module looks for them."""
    if sys.implementation.name != "cpython" or object.__basicsize__ % 8 or np.intp().itemsize != 8:
        return False
    room = np.zeros((6, 4))
    arrays = [np.zeros(3), room[1:, ::2].T, np.array(1.0), room.view(np.matrix), room.view("i8")]
    arrays += [np.asfortranarray(room[:, :2]), room[::-1]]
    for array in arrays[:2]:
        array.flags.writeable = False
    rows = _recorded(arrays)[1].tolist()
    at = 0
    for array in arrays:
        kind, data, owner, dtype, flags, shape, strides = header(array)
        fields = rows[at : at + 3] + rows[at + 5 : at + 8 + 2 * array.ndim]
        axes = [word for pair in zip(shape, strides, strict=True) for word in pair]
        if fields != [id(kind), data, array.ndim, owner, dtype, flags, *axes]:
            return False
        at += 8 + 2 * array.ndim
    return True
