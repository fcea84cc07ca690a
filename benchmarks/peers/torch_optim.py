"""torch.optim: fused, for-each and plain loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from benchmarks.cases import EMA_MOMENTUM, GLOBAL_NORM, Case
from benchmarks.models import Floats
from benchmarks.timing import Contestant

_FUSED = ("SGD", "Adagrad", "Adam", "AdamW")
_KINDS: dict[str, dict[str, bool]] = {
    "torch fused": {"fused": True},
    "torch foreach": {"foreach": True},
    "torch loop": {"foreach": False},
}


def contestants(case: Case, params: list[Floats], grads: list[Floats]) -> Iterator[Contestant]:
    """`optimizer.step()` of each implementation; for the composite, torch's best composition."""
    if case.composite:
        yield Contestant("torch clip + fused + EMA", "torch", _composition(case, params, grads))
        return
    for name, kind in _KINDS.items():
        if "fused" not in kind or case.rule in _FUSED:
            yield Contestant(name, "torch", _optimizer(case, params, grads, kind)[0].step)


def _optimizer(
    case: Case, params: list[Floats], grads: list[Floats], kind: dict[str, bool]
) -> tuple[Any, list[torch.Tensor]]:
    tensors: list[torch.Tensor] = []
    for array, gradient in zip(params, grads, strict=True):
        tensor = torch.from_numpy(array.copy()).requires_grad_()
        # Clipping writes the gradients; otherwise they are only read.
        tensor.grad = torch.from_numpy(gradient.copy() if case.composite else gradient)
        tensors.append(tensor)
    return getattr(torch.optim, case.rule)(tensors, **case.hyperparameters, **kind), tensors


def _composition(case: Case, params: list[Floats], grads: list[Floats]) -> Callable[[], None]:
    optimizer, tensors = _optimizer(case, params, grads, {"fused": True})
    averages = [tensor.detach().clone() for tensor in tensors]
    current = [tensor.detach() for tensor in tensors]
    average = get_ema_multi_avg_fn(EMA_MOMENTUM)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(tensors, GLOBAL_NORM, foreach=True)
        optimizer.step()
        average(averages, current, 1)

    return step


def versions() -> dict[str, str]:
    """Torch's version."""
    return {"torch": str(torch.__version__)}
