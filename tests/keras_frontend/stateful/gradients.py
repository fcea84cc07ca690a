"""The gradients that Keras users on torch give: of any layout and kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .world import World


def _strided(g: Any) -> Any:
    room = torch.zeros(*g.shape, 2, dtype=g.dtype)
    room[..., 0] = g
    return room[..., 0]


def _transposed(g: Any) -> Any:
    return g.transpose(-1, -2).contiguous().transpose(-1, -2) if g.ndim > 1 else g


def _infinite(g: Any) -> Any:
    return torch.full_like(g, float("inf"))


KINDS: dict[str, Callable[[Any], Any]] = {
    "dense": lambda g: g,
    "transposed": _transposed,
    "strided": _strided,
    "expanded": lambda g: torch.tensor(0.5, dtype=g.dtype).expand(g.shape),
    "with an offset": lambda g: torch.cat([g.new_zeros(3), g.reshape(-1)])[3:].view(g.shape),
    "that requires a gradient": lambda g: g.requires_grad_(),
    "negative": lambda g: torch._neg_view(g),
    "of NumPy": lambda g: g.numpy() if g.dtype != torch.bfloat16 else g,
    "infinite": _infinite,
    "none": lambda g: None,
}


def given(w: World, i: int, k: int) -> list[Any]:
    """A gradient for each variable.

    Args:
        i: the kind of one of them.
        k: which one this is; the others are dense, or None.
    """
    kind, odd = list(KINDS)[i % len(KINDS)], k % len(w.variables)
    grads: list[Any] = []
    for place, v in enumerate(w.variables):
        values = torch.tensor(w.values(v.shape), dtype=v._value.dtype)
        chosen = kind if place == odd else "none" if (k // 5 + place) % 4 == 0 else "dense"
        if chosen == "of NumPy" and str(v._value.dtype) != f"torch.{v.dtype}":
            chosen = "dense"  # an array is converted to the dtype that Keras has for the variable
        grads.append(KINDS[chosen](values))
    return grads
