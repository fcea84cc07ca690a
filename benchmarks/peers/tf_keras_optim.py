"""tf_keras: `optimizer.apply_gradients` in a function compiled by XLA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

import isostep.tf_keras
from benchmarks.cases import Case
from benchmarks.models import Floats
from benchmarks.peers.keras_optim import optimizer, pair


def _step(
    case: Case, params: list[Floats], grads: list[Floats], classes: Any
) -> Callable[[], object]:
    """One compiled function; reading the step count waits for its end."""
    variables = [tf.Variable(p) for p in params]
    made = optimizer(case, variables, classes)
    gradients = [tf.constant(g) for g in grads]

    @tf.function(jit_compile=True)
    def compiled(given: list[Any]) -> None:
        made.apply_gradients(list(zip(given, variables, strict=True)))

    def step() -> None:
        compiled(gradients)
        made.iterations.numpy()

    return step


contestants, front_end = pair("tf_keras", _step, tf_keras.optimizers, isostep.tf_keras)


def versions() -> dict[str, str]:
    """The versions of tf_keras and TensorFlow."""
    return {"tf_keras": tf_keras.__version__, "tensorflow": tf.__version__}
