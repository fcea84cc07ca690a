"""Keras 3 on JAX: `optimizer.stateless_apply` under jit, as its trainer calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras

import isostep.keras
from benchmarks.cases import Case
from benchmarks.models import Floats
from benchmarks.peers.keras_optim import optimizer, pair


def _step(
    case: Case, params: list[Floats], grads: list[Floats], classes: Any
) -> Callable[[], object]:
    """One compiled function with the optimizer's and the model's variables donated."""
    variables = [keras.Variable(p.copy()) for p in params]
    made = optimizer(case, variables, classes)
    gradients = [jnp.array(g) for g in grads]
    kept = [([v.value for v in made.variables], [v.value for v in variables])]
    # JAX pairs donated arrays with results by their order: in another one it copies all of them.
    compiled = jax.jit(
        lambda state, values, gradients: made.stateless_apply(state, gradients, values)[::-1],
        donate_argnums=(0, 1),
    )

    def step() -> None:
        kept[0] = compiled(*kept[0], gradients)
        jax.block_until_ready(kept[0])

    return step


contestants, front_end = pair("keras-jax", _step, keras.optimizers, isostep.keras)


def versions() -> dict[str, str]:
    """The versions of Keras and JAX."""
    return {"keras": keras.__version__} | {"jax": jax.__version__}
