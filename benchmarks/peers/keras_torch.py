"""Keras 3 on torch: `optimizer.apply`, as its trainer calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import torch

import isostep.keras
from benchmarks.cases import Case
from benchmarks.models import Floats
from benchmarks.peers import FRONT_ENDS
from benchmarks.peers.keras_optim import keras_versions, optimizer, variables_of
from benchmarks.timing import Contestant


def contestants(case: Case, params: list[Floats], grads: list[Floats]) -> Iterator[Contestant]:
    """Keras' own optimizer."""
    yield Contestant("keras-torch", "keras-torch", _step(case, params, grads, keras.optimizers))


def front_end(case: Case, params: list[Floats], grads: list[Floats]) -> Contestant:
    """isostep's in its place."""
    name = FRONT_ENDS["keras-torch"]
    return Contestant(name, name, _step(case, params, grads, isostep.keras))


def _step(
    case: Case, params: list[Floats], grads: list[Floats], classes: Any
) -> Callable[[], object]:
    """`apply` without autograd."""
    variables = variables_of(params)
    made = optimizer(case, variables, classes)
    gradients = [torch.from_numpy(g.copy()) for g in grads]

    def step() -> None:
        with torch.no_grad():
            made.apply(gradients, variables)

    return step


def versions() -> dict[str, str]:
    """The versions of Keras and torch."""
    return keras_versions() | {"torch": str(torch.__version__)}
