"""Keras 3 on TensorFlow: `optimizer.apply` in a function compiled by XLA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

import isostep.keras
from benchmarks.cases import Case
from benchmarks.models import Floats
from benchmarks.peers import FRONT_ENDS
from benchmarks.peers.keras_optim import keras_versions, optimizer, variables_of
from benchmarks.timing import Contestant


def contestants(case: Case, params: list[Floats], grads: list[Floats]) -> Iterator[Contestant]:
    """Keras' own optimizer."""
    yield Contestant("keras-tf", "keras-tf", _step(case, params, grads, keras.optimizers))


def front_end(case: Case, params: list[Floats], grads: list[Floats]) -> Contestant:
    """isostep's in its place."""
    name = FRONT_ENDS["keras-tf"]
    return Contestant(name, name, _step(case, params, grads, isostep.keras))


def _step(
    case: Case, params: list[Floats], grads: list[Floats], classes: Any
) -> Callable[[], object]:
    """One compiled function; reading the step count waits for its end."""
    variables = variables_of(params)
    made = optimizer(case, variables, classes)
    gradients = [tf.constant(g) for g in grads]

    @tf.function(jit_compile=True)
    def compiled(given: list[Any]) -> None:
        made.apply(given, variables)

    def step() -> None:
        compiled(gradients)
        made.iterations.numpy()

    return step


def versions() -> dict[str, str]:
    """The versions of Keras and TensorFlow."""
    return keras_versions() | {"tensorflow": tf.__version__}
