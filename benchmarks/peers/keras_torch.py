"""Keras 3 on torch: `optimizer.apply`, as its trainer calls it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.cases import Case
from benchmarks.models import Floats
from benchmarks.peers.keras_optim import keras_versions, optimizer, variables_of
from benchmarks.timing import Contestant


def contestants(case: Case, params: list[Floats], grads: list[Floats]) -> Iterator[Contestant]:
    """`apply` without autograd."""
    variables = variables_of(params)
    made = optimizer(case, variables)
    gradients = [torch.from_numpy(g.copy()) for g in grads]

    def step() -> None:
        with torch.no_grad():
            made.apply(gradients, variables)

    yield Contestant("keras-torch", "keras-torch", step)


def versions() -> dict[str, str]:
    """The versions of Keras and torch."""
    return keras_versions() | {"torch": str(torch.__version__)}
