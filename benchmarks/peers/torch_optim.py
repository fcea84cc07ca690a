"""torch.optim: fused, for-each and plain loops; and isostep in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

import isostep.torch
from benchmarks.cases import EMA_MOMENTUM, GLOBAL_NORM, Case
from benchmarks.models import Floats
from benchmarks.peers import FRONT_ENDS
from benchmarks.timing import Contestant
from isostep.recipe import EMA, Clip

Tensors = list[torch.Tensor]
Way = Callable[[Tensors], Callable[[], object]]
"""Takes parameters that have gradients, and gives what does one step of them."""

_FUSED = ("SGD", "Adagrad", "Adam", "AdamW")
_KINDS: dict[str, dict[str, bool]] = {
    "torch fused": {"fused": True},
    "torch foreach": {"foreach": True},
    "torch loop": {"foreach": False},
}


def contestants(case: Case, params: list[Floats], grads: list[Floats]) -> Iterator[Contestant]:
    """`optimizer.step()` of each implementation; for the composite, torch's best composition."""
    for name, way in ways(case).items():
        yield Contestant(name, "torch", way(_tensors(case, params, grads)))


def front_end(case: Case, params: list[Floats], grads: list[Floats]) -> Contestant:
    """`optimizer.step()` of isostep.torch."""
    name = FRONT_ENDS["torch"]
    return Contestant(name, name, own_way(case)(_tensors(case, params, grads)))


def ways(case: Case) -> dict[str, Way]:
    """How torch does a case, by name."""
    if case.composite:
        return {"torch clip + fused + EMA": partial(_composition, case)}
    return {
        name: partial(_plain, case, kind)
        for name, kind in _KINDS.items()
        if "fused" not in kind or case.rule in _FUSED
    }


def own_way(case: Case) -> Way:
    """How isostep.torch does a case."""

    def way(tensors: Tensors) -> Callable[[], object]:
        return getattr(isostep.torch, case.rule)(
            tensors,
            **case.hyperparameters,
            clip=Clip(global_norm=GLOBAL_NORM) if case.composite else None,
            ema=EMA(EMA_MOMENTUM, start="first_update") if case.composite else None,
        ).step

    return way


def _tensors(case: Case, params: list[Floats], grads: list[Floats]) -> Tensors:
    tensors: Tensors = []
    for array, gradient in zip(params, grads, strict=True):
        tensor = torch.from_numpy(array.copy()).requires_grad_()
        # Clipping writes the gradients; otherwise they are only read.
        tensor.grad = torch.from_numpy(gradient.copy() if case.composite else gradient)
        tensors.append(tensor)
    return tensors


def _plain(case: Case, kind: dict[str, bool], tensors: Tensors) -> Callable[[], object]:
    return getattr(torch.optim, case.rule)(tensors, **case.hyperparameters, **kind).step


def _composition(case: Case, tensors: Tensors) -> Callable[[], object]:
    update = _plain(case, {"fused": True}, tensors)
    averages = [tensor.detach().clone() for tensor in tensors]
    current = [tensor.detach() for tensor in tensors]
    average = get_ema_multi_avg_fn(EMA_MOMENTUM)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(tensors, GLOBAL_NORM, foreach=True)
        update()
        average(averages, current, 1)

    return step


def versions() -> dict[str, str]:
    """Torch's version."""
    return {"torch": str(torch.__version__)}
