"""Gradients of any layout and kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .world import World

Kind = Callable[[World, Any], Any]
KINDS: dict[str, Kind] = {}


class Marked(torch.Tensor):
    """A tensor of a user's own class, without behaviour."""


class Logged(torch.Tensor):
    """A tensor of a user's own class, whose every operation comes by."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {})


class Wrapped(torch.Tensor):
    """A tensor without memory of its own: another one has it."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, strides=inner.stride()
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def bare(x: Any) -> Any:
            return x.inner if isinstance(x, Wrapped) else x

        args, kwargs = torch.utils._pytree.tree_map(bare, (args, kwargs or {}))
        return func(*args, **kwargs)


def kind(function: Kind) -> Kind:
    KINDS[function.__name__] = function
    return function


def values(w: World, p: Any) -> Tensor:
    return w.values(p.shape, p.dtype)


@kind
def dense(w: World, p: Any) -> Any:
    return torch.empty_like(p.detach()).copy_(values(w, p))


@kind
def none(w: World, p: Any) -> Any:
    return None


@kind
def contiguous(w: World, p: Any) -> Any:
    return values(w, p).contiguous()


@kind
def transposed(w: World, p: Any) -> Any:
    g = values(w, p)
    return g if g.ndim < 2 else g.transpose(0, -1).contiguous().transpose(0, -1)


@kind
def strided(w: World, p: Any) -> Any:
    return w.values((*p.shape, 2), p.dtype)[..., 1]


@kind
def expanded(w: World, p: Any) -> Any:
    return w.values((), p.dtype).expand(p.shape)


@kind
def expanded_rows(w: World, p: Any) -> Any:
    return w.values(p.shape[1:], p.dtype).expand(p.shape) if p.ndim else values(w, p)


@kind
def sparse(w: World, p: Any) -> Any:
    g = values(w, p)
    if not g.ndim:
        return g
    rows = torch.arange(0, p.shape[0], 2)
    picked = g[rows]
    twice = torch.cat([rows, rows])  # uncoalesced
    return torch.sparse_coo_tensor(twice[None], torch.cat([picked, picked]), p.shape)


@kind
def sparse_without_rows(w: World, p: Any) -> Any:
    if not p.ndim:
        return values(w, p)
    none = torch.empty((1, 0), dtype=torch.long)
    return torch.sparse_coo_tensor(none, torch.empty((0, *p.shape[1:]), dtype=p.dtype), p.shape)


@kind
def negative_bit(w: World, p: Any) -> Any:
    return torch._neg_view(values(w, p))


@kind
def imaginary_part(w: World, p: Any) -> Any:
    """A view with the negative bit, strided, as the conjugate of something complex gives."""
    if p.dtype not in (torch.float32, torch.float64):
        return values(w, p)
    wide = torch.complex64 if p.dtype == torch.float32 else torch.complex128
    return w.values(p.shape, wide).conj().imag


@kind
def conjugated(w: World, p: Any) -> Any:
    """A view with the conjugate bit, where there is one."""
    return values(w, p).conj()


@kind
def zero_tensor(w: World, p: Any) -> Any:
    return torch._efficientzerotensor(p.shape, dtype=p.dtype)


@kind
def subclass(w: World, p: Any) -> Any:
    return values(w, p).as_subclass(Marked)


@kind
def subclass_with_behaviour(w: World, p: Any) -> Any:
    return values(w, p).as_subclass(Logged)


@kind
def wrapper(w: World, p: Any) -> Any:
    return Wrapped(values(w, p))


@kind
def is_a_parameter(w: World, p: Any) -> Any:
    return torch.nn.Parameter(values(w, p), requires_grad=False)


@kind
def with_a_graph(w: World, p: Any) -> Any:
    return values(w, p).requires_grad_() * 2


@kind
def of_a_flat_buffer(w: World, p: Any) -> Any:
    return w.values((p.numel() + 5,), p.dtype)[5:].view(p.shape)


@kind
def the_parameters_own_memory(w: World, p: Any) -> Any:
    return p.detach()


@kind
def infinite(w: World, p: Any) -> Any:
    g = values(w, p)
    if g.numel():
        g.view(-1)[0] = float("inf")
    return g


@kind
def zero(w: World, p: Any) -> Any:
    return torch.zeros_like(p.detach())


@kind
def of_another_dtype(w: World, p: Any) -> Any:
    return After(
        values(w, p), lambda g: g.to(torch.float32 if p.dtype != torch.float32 else torch.float64)
    )


@kind
def of_another_shape(w: World, p: Any) -> Any:
    return After(values(w, p), lambda g: g.reshape(-1) if g.ndim != 1 else g.reshape(1, -1))


@kind
def too_large(w: World, p: Any) -> Any:
    return After(values(w, p), lambda g: torch.cat([g.reshape(-1)] * 2))


PAST_CHECKS = ("of_another_dtype", "of_another_shape", "too_large")
"""What torch would not let anyone put into `grad` directly."""


class After:
    """A gradient whose memory is replaced once it has its place, past torch's checks."""

    def __init__(self, first: Tensor, change: Callable[[Tensor], Tensor]) -> None:
        self.first, self.change = first, change


def give(w: World, name: str, i: int) -> None:
    """New gradients for all parameters: some of this kind, the others dense."""
    for n, p in enumerate(w.stepped):
        made = KINDS[name if n % 3 == i % 3 else "dense"](w, p)
        p.grad = made.first if isinstance(made, After) else made
        if isinstance(made, After):
            p.grad.data = made.change(p.grad.data)
