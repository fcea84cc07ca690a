"""Two optimizers over equal parameters: torch's loop and isostep's fused step.

In float64 every element must agree to `TOLERANCE`, relative to the largest magnitude that it has
had so far: a parameter that passes zero keeps the rounding of what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import isostep.torch

TOLERANCE = 1e-12
NAMES = ("SGD", "Adagrad", "RMSprop", "Adadelta", "Adam", "AdamW", "Adafactor")
# One form of each with every slot that torch keeps for it, all numbers away from their defaults.
FULL: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.03, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.07},
    "Adagrad": {"lr": 0.3, "lr_decay": 0.05, "initial_accumulator_value": 0.2, "eps": 1e-3},
    "RMSprop": {"lr": 0.02, "alpha": 0.9, "eps": 1e-2, "momentum": 0.7, "centered": True},
    "Adadelta": {"lr": 0.7, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.07},
    "Adam": {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3, "amsgrad": True},
    "AdamW": {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.07},
    "Adafactor": {"lr": 0.3, "beta2_decay": -0.7, "eps": (1e-3, 0.2), "d": 1.3},
}
SHAPES = ((), (5,), (4, 6), (2, 3, 4), (6, 2, 3, 3))


def theirs(name: str) -> Any:
    return getattr(torch.optim, name)


def ours(name: str) -> Any:
    return getattr(isostep.torch, name)


def make_params(
    dtype: torch.dtype = torch.float64,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    seed: int = 0,
) -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(seed)
    return [
        nn.Parameter(torch.randn(s, generator=random, dtype=torch.float64).to(dtype))
        for s in shapes
    ]


def make_grads(params: Sequence[Tensor], step: int, scale: float = 1.0) -> list[Tensor]:
    """A gradient for each parameter, laid out in memory as autograd lays it out."""
    random = torch.Generator().manual_seed(1000 + step)
    grads: list[Tensor] = []
    for k, p in enumerate(params):
        parts = torch.randn(
            (2, *p.shape) if p.is_complex() else p.shape, generator=random, dtype=torch.float64
        )
        value = torch.complex(*parts) if p.is_complex() else parts
        grad = torch.empty_like(p, requires_grad=False)
        grads.append(grad.copy_(scale * (0.2 + k % 3) * value))
    return grads


def give(params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = None if g is None else g.clone(memory_format=torch.preserve_format)


class Twins:
    """torch's optimizer and isostep's, over parameters made by the same function.

    Args:
        name: the class.
        make: makes the parameters.
        common: arguments of both.
        mine: arguments of isostep's alone.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], list[Any]] = make_params,
        mine: dict[str, Any] | None = None,
        **common: Any,
    ) -> None:
        loop = {} if name in ("Adafactor",) else {"foreach": False}
        self.a_params, self.b_params = make(), make()
        self.a = theirs(name)(self.a_params, **loop, **common)
        self.b = ours(name)(self.b_params, **common, **(mine or {}))
        self.largest: dict[Any, Tensor] = {
            (k, "param"): p.detach().abs() for k, p in enumerate(self.a_params)
        }
        self.steps = 0

    def give(self, grads: Sequence[Tensor | None] | None = None) -> None:
        grads = make_grads(self.a_params, self.steps) if grads is None else grads
        give(self.a_params, grads)
        give(self.b_params, grads)
        self.steps += 1

    def step(self, grads: Sequence[Tensor | None] | None = None, compare: bool = True) -> None:
        """A step of both, and a comparison of everything that it may have changed."""
        self.give(grads)
        self.a.step()
        self.b.step()
        if compare:
            self.compare()

    def run(self, steps: int, compare_every: int = 1) -> None:
        for _ in range(steps):
            self.step(compare=(self.steps + 1) % compare_every == 0)

    def compare(self, tolerance: float = TOLERANCE) -> None:
        for k, (p, q) in enumerate(zip(self.a_params, self.b_params, strict=True)):
            self._same((k, "param"), p, q, tolerance)
            kept, mine = self.a.state.get(p, {}), self.b.state.get(q, {})
            kept = {key: value for key, value in kept.items() if value is not None}
            assert kept.keys() <= mine.keys(), (k, kept.keys(), mine.keys())
            for key, value in kept.items():
                self._same((k, key), value, mine[key], tolerance)

    def _same(self, what: Any, a: Tensor, b: Tensor, tolerance: float) -> None:
        a = (a.to_dense() if a.is_sparse else a).detach()
        b = b.detach()
        assert a.shape == b.shape, what
        assert a.dtype == b.dtype, what
        seen = torch.maximum(self.largest.get(what, a.abs()), a.abs())
        self.largest[what] = seen
        far = (a - b).abs() > tolerance * seen
        assert not far.any(), (what, self.steps, a[far][:3], b[far][:3])


def bits(optimizer: Any) -> list[Any]:
    """Copies of everything that a step writes: parameters and state."""
    found: list[Any] = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            found.append(p.detach().clone())
            kept = optimizer.state.get(p, {})
            found += [
                (key, v.clone() if isinstance(v, Tensor) else v) for key, v in sorted(kept.items())
            ]
    return found


def assert_same_bits(a: Any, b: Any) -> None:
    """Equality of tensors within nested lists, tuples and dicts, NaN equal to NaN."""
    assert type(a) is type(b) or (isinstance(a, Tensor) and isinstance(b, Tensor)), (a, b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same_bits(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same_bits(x, y)
    elif isinstance(a, Tensor):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
        assert torch.equal(torch.isnan(a), torch.isnan(b))
    else:
        assert a == b
