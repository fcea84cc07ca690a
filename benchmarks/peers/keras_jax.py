"""Keras 3 on JAX: `optimizer.stateless_apply` under jit, as its trainer calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import keras

import isostep.keras
from benchmarks.cases import Case
from benchmarks.models import Floats
from benchmarks.peers import FRONT_ENDS
from benchmarks.peers.keras_optim import keras_versions, optimizer, variables_of
from benchmarks.timing import Contestant


def contestants(case: Case, params: list[Floats], grads: list[Floats]) -> Iterator[Contestant]:
    """Keras' own optimizer."""
    yield Contestant("keras-jax", "keras-jax", _step(case, params, grads, keras.optimizers))


def front_end(case: Case, params: list[Floats], grads: list[Floats]) -> Contestant:
    """isostep's in its place."""
    name = FRONT_ENDS["keras-jax"]
    return Contestant(name, name, _step(case, params, grads, isostep.keras))


def _step(
    case: Case, params: list[Floats], grads: list[Floats], classes: Any
) -> Callable[[], object]:
    """One compiled function with the optimizer's and the model's variables donated."""
    variables = variables_of(params)
    made = optimizer(case, variables, classes)
    gradients = [jnp.array(g) for g in grads]
    kept = [([v.value for v in made.variables], [v.value for v in variables])]
    compiled = jax.jit(
        lambda state, values, gradients: made.stateless_apply(state, gradients, values),
        donate_argnums=(0, 1),
    )

    def step() -> None:
        values, state = compiled(*kept[0], gradients)
        kept[0] = (state, values)
        jax.block_until_ready(kept[0])

    return step


def versions() -> dict[str, str]:
    """The versions of Keras and JAX."""
    return keras_versions() | {"jax": jax.__version__}
