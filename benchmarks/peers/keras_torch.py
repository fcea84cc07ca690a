"""Keras 3 on torch: `optimizer.apply`, as its trainer calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import torch

import isostep.keras
from benchmarks.cases import Case
from benchmarks.models import Floats
from benchmarks.peers.keras_optim import optimizer, pair


def _step(
    case: Case, params: list[Floats], grads: list[Floats], classes: Any
) -> Callable[[], object]:
    """`apply` without autograd."""
    variables = [keras.Variable(p.copy()) for p in params]
    made = optimizer(case, variables, classes)
    gradients = [torch.from_numpy(g.copy()) for g in grads]

    def step() -> None:
        with torch.no_grad():
            made.apply(gradients, variables)

    return step


contestants, front_end = pair("keras-torch", _step, keras.optimizers, isostep.keras)


def versions() -> dict[str, str]:
    """The versions of Keras and torch."""
    return {"keras": keras.__version__} | {"torch": str(torch.__version__)}
