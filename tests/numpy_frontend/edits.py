"""What NumPy lets users do to one array in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..table import AnyArray

SHAPE = (6, 6)


def start(dtype: str = "float32") -> AnyArray:
    return np.random.default_rng(0).normal(size=SHAPE).astype(dtype)


def moved(w: AnyArray) -> None:
    """Grow an array until it lies elsewhere, and shrink it."""
    before, holes = w.ctypes.data, []
    for k in range(1, 40):
        w.resize((6 << k, 6), refcheck=False)
        if w.ctypes.data != before or k == 18:
            break
        holes.append(np.zeros(1 << k))
    w.resize(SHAPE, refcheck=False)


def swap_strides(w: AnyArray) -> None:
    w.strides = w.strides[::-1]


def of_other_memory(w: AnyArray) -> None:
    w.__setstate__(w.__reduce__()[2])  # as unpickling does


def byteswap_twice(w: AnyArray) -> None:
    w.byteswap(inplace=True)
    w.byteswap(inplace=True)


def lock_and_unlock(w: AnyArray) -> None:
    w.flags.writeable = False
    w.setflags(write=True)


def set_elements(w: AnyArray) -> None:
    w *= 0.5
    w[0] = 3.0


def nothing(w: AnyArray) -> None:
    pass


def transpose(w: AnyArray) -> None:
    w[...] = w.T.copy()


# Each with what it does to the elements.
FOLLOWED: dict[str, tuple[Callable[[AnyArray], None], Callable[[AnyArray], None]]] = {
    "moved": (moved, nothing),
    "strides swapped": (swap_strides, transpose),
    "other memory": (of_other_memory, nothing),
    "byteswap twice": (byteswap_twice, nothing),
    "locked and unlocked": (lock_and_unlock, nothing),
    "elements": (set_elements, set_elements),
}


def shrunk(w: AnyArray) -> None:
    w.resize((2, 6), refcheck=False)


def grown(w: AnyArray) -> None:
    w.resize((600, 6), refcheck=False)


def reshaped(w: AnyArray) -> None:
    w.shape = (4, 9)


def flattened(w: AnyArray) -> None:
    w.shape = (36,)


def recast(w: AnyArray) -> None:
    w.dtype = np.int32


def narrowed(w: AnyArray) -> None:
    w.dtype = np.float16


def widened(w: AnyArray) -> None:
    w.dtype = np.float64


def swapped(w: AnyArray) -> None:
    w.dtype = w.dtype.newbyteorder()


def locked(w: AnyArray) -> None:
    w.flags.writeable = False


def broadcast(w: AnyArray) -> None:
    w.strides = (0, w.itemsize)


# Each with what undoes it.
REFUSED: dict[str, tuple[Callable[[AnyArray], None], Callable[[AnyArray], Any]]] = {
    "shrunk": (shrunk, lambda w: w.resize(SHAPE, refcheck=False)),
    "grown": (grown, lambda w: w.resize(SHAPE, refcheck=False)),
    "reshaped": (reshaped, lambda w: setattr(w, "shape", SHAPE)),
    "flattened": (flattened, lambda w: setattr(w, "shape", SHAPE)),
    "recast": (recast, lambda w: setattr(w, "dtype", np.float32)),
    "narrowed": (narrowed, lambda w: setattr(w, "dtype", np.float32)),
    "widened": (widened, lambda w: setattr(w, "dtype", np.float32)),
    "swapped": (swapped, lambda w: setattr(w, "dtype", np.float32)),
    "locked": (locked, lambda w: w.setflags(write=True)),
    "broadcast": (broadcast, lambda w: w.__setstate__(start().__reduce__()[2])),
}


SLOT_EDITS: dict[str, Callable[[AnyArray], None]] = {
    "shrunk": lambda a: a.resize(5, refcheck=False),
    "grown": lambda a: a.resize(5000, refcheck=False),
    "reshaped": lambda a: setattr(a, "shape", (6, 6)),
    "recast": lambda a: setattr(a, "dtype", np.int32),
    "narrowed": lambda a: setattr(a, "dtype", np.float16),
    "locked": lambda a: a.setflags(write=False),
    "backwards": lambda a: setattr(a, "strides", (0,)),
}
