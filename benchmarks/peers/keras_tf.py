"""Keras 3 on TensorFlow: `optimizer.apply` in a function compiled by XLA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from benchmarks.cases import Case
from benchmarks.models import Floats
from benchmarks.peers.keras_optim import keras_versions, optimizer, variables_of
from benchmarks.timing import Contestant


def contestants(case: Case, params: list[Floats], grads: list[Floats]) -> Iterator[Contestant]:
    """One compiled function; reading the step count waits for its end."""
    variables = variables_of(params)
    made = optimizer(case, variables)
    gradients = [tf.constant(g) for g in grads]

    @tf.function(jit_compile=True)
    def compiled(given: list[Any]) -> None:
        made.apply(given, variables)

    def step() -> None:
        compiled(gradients)
        made.iterations.numpy()

    yield Contestant("keras-tf", "keras-tf", step)


def versions() -> dict[str, str]:
    """The versions of Keras and TensorFlow."""
    return keras_versions() | {"tensorflow": tf.__version__}
