"""Keras 3 on TensorFlow: `optimizer.apply` in a function compiled by XLA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

import isostep.keras
from benchmarks.cases import Case
from benchmarks.models import Floats
from benchmarks.peers.keras_optim import optimizer, pair


def _step(
    case: Case, params: list[Floats], grads: list[Floats], classes: Any
) -> Callable[[], object]:
    """One compiled function; reading the step count waits for its end."""
    variables = [keras.Variable(p.copy()) for p in params]
    made = optimizer(case, variables, classes)
    gradients = [tf.constant(g) for g in grads]

    @tf.function(jit_compile=True)
    def compiled(given: list[Any]) -> None:
        made.apply(given, variables)

    def step() -> None:
        compiled(gradients)
        made.iterations.numpy()

    return step


contestants, front_end = pair("keras-tf", _step, keras.optimizers, isostep.keras)


def versions() -> dict[str, str]:
    """The versions of Keras and TensorFlow."""
    return {"keras": keras.__version__} | {"tensorflow": tf.__version__}
