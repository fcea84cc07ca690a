"""The gradients that NumPy users give: of any layout, dtype and kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from ...table import AnyArray
from .world import World


def _strided(g: AnyArray) -> AnyArray:
    room = np.zeros((*g.shape, 2), g.dtype)
    room[..., 0] = g
    return room[..., 0]


def _unaligned(g: AnyArray) -> AnyArray:
    room = np.zeros(g.nbytes + 1, np.uint8)[1:].view(g.dtype).reshape(g.shape)
    room[...] = g
    return room


def _read_only(g: AnyArray) -> AnyArray:
    g = g.copy()
    g.flags.writeable = False
    return g


def _broadcast(g: AnyArray) -> AnyArray:
    return np.broadcast_to(g.dtype.type(0.5), g.shape)


def _field(g: AnyArray) -> AnyArray:
    room = np.zeros(g.shape, [("tag", "u1"), ("g", g.dtype)])
    room["g"] = g
    return room["g"]


def _infinite(g: AnyArray) -> AnyArray:
    g = g.copy()
    g[...] = np.inf
    return g


GOOD: dict[str, Callable[[AnyArray], Any]] = {
    "dense": lambda g: g,
    "fortran": lambda g: g.copy(order="F"),
    "reversed": lambda g: g[::-1] if g.ndim else g,
    "transposed twice": lambda g: g.T.copy().T,
    "strided": _strided,
    "unaligned": _unaligned,
    "read-only": _read_only,
    "broadcast": _broadcast,
    "a field": _field,
    "a matrix": lambda g: g.view(np.matrix) if g.ndim == 2 else g,
    "of a memoryview": lambda g: np.frombuffer(memoryview(g.tobytes()), g.dtype).reshape(g.shape),
    "scalar": lambda g: g[()] if g.ndim == 0 else g,
    "float64": lambda g: g.astype(np.float64),
    "float32": lambda g: g.astype(np.float32),
    "float16": lambda g: g.astype(np.float16),
    "bfloat16": lambda g: g.astype(ml_dtypes.bfloat16),
    "infinite": _infinite,
    "none": lambda g: None,
}
REFUSED: dict[str, Callable[[AnyArray], Any]] = {
    "a list": lambda g: g.tolist(),
    "of another shape": lambda g: np.zeros((*g.shape, 2), g.dtype),
    "integers": lambda g: g.astype(np.int32),
    "complex": lambda g: g.astype(np.complex64),
    "of another byte order": lambda g: g.astype(np.float32).astype(">f4"),
    "masked": np.ma.masked_array,
    "absent": lambda g: None,
    "unknown": lambda g: g,
}
ALL = {**GOOD, **REFUSED}


def given(w: World, i: int, k: int) -> tuple[dict[str, Any], bool]:
    """Gradients for all parameters, and whether one of them is to be refused.

    Args:
        i: the kind of the first of them, and by this of the others.
        k: which one is of another kind.
    """
    kinds = list(ALL)
    kind, odd = kinds[i % len(kinds)], k % len(w.forms)
    grads: dict[str, Any] = {}
    for place, (name, form) in enumerate(w.forms.items()):
        dtype = (np.float32, np.float64)[form.dtype == np.float64]
        usual = list(GOOD)[(i + place) % 5]  # of different layouts
        chosen = kind if place == odd else "none" if (k // 7 + place) % 4 == 0 else usual
        grads[name] = ALL[chosen](w.values(form.shape, dtype))
        if chosen == "absent":
            del grads[name]
    if kind == "unknown":
        grads["unknown"] = w.values((2,))
    return grads, kind in REFUSED


def in_memory_of_the_step(w: World, grads: dict[str, Any], k: int) -> None:
    """One of the gradients is a parameter, or a slot."""
    bad = w.bad()
    for place, (name, form) in enumerate(w.forms.items()):
        arrays = [w.entries()[name]] if name not in bad else []
        if name not in w.bad_slots():
            arrays += w.optimizer.slots(name).values()
        fitting = [a for a in arrays if a.shape == form.shape]
        if fitting and place % 2 == k % 2 and grads.get(name) is not None:
            grads[name] = fitting[k % len(fitting)]
