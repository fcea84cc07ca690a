"""Keras 3 on JAX: `optimizer.stateless_apply` under jit, as its trainer calls it."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks.cases import Case
from benchmarks.models import Floats
from benchmarks.peers.keras_optim import keras_versions, optimizer, variables_of
from benchmarks.timing import Contestant


def contestants(case: Case, params: list[Floats], grads: list[Floats]) -> Iterator[Contestant]:
    """One compiled function with the optimizer's and the model's variables donated."""
    variables = variables_of(params)
    made = optimizer(case, variables)
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

    yield Contestant("keras-jax", "keras-jax", step)


def versions() -> dict[str, str]:
    """The versions of Keras and JAX."""
    return keras_versions() | {"jax": jax.__version__}
