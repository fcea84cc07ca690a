"""optax on JAX: the whole step under jit, with parameters and state donated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import isostep.jax
from benchmarks.cases import EMA_MOMENTUM, GLOBAL_NORM, LEARNING_RATE, Case
from benchmarks.models import Floats
from benchmarks.peers import FRONT_ENDS, OTHER_FORMS
from benchmarks.timing import Contestant
from isostep.recipe import EMA, Clip


def _transformation(case: Case) -> optax.GradientTransformation:
    make = getattr(optax, case.rule.lower())
    rule = make(LEARNING_RATE[case.rule], **case.hyperparameters)
    return optax.chain(optax.clip_by_global_norm(GLOBAL_NORM), rule) if case.composite else rule


def contestants(case: Case, params: list[Floats], grads: list[Floats]) -> Iterator[Contestant]:
    """`update`, `apply_updates` and the average as one compiled function."""
    optimizer = _transformation(case)

    def update(kept: Any, gradients: Any) -> Any:
        old, state, averages = kept
        updates, state = optimizer.update(gradients, state, old)
        new = optax.apply_updates(old, updates)
        if case.composite:
            averages = optax.incremental_update(new, averages, 1 - EMA_MOMENTUM)
        return new, state, averages

    compiled = jax.jit(update, donate_argnums=0)
    gradients = [jnp.array(g) for g in grads]
    values = [jnp.array(p) for p in params]
    averages = [jnp.array(p) for p in params] if case.composite else []
    kept = [(values, optimizer.init(values), averages)]
    del values, averages

    def step() -> None:
        kept[0] = compiled(kept[0], gradients)
        jax.block_until_ready(kept[0])

    yield Contestant("optax", "optax", step)


def front_end(case: Case, params: list[Floats], grads: list[Floats]) -> Contestant:
    """isostep's in its place, by its fused form, with the engine that it takes by itself."""
    return _form(case, params, grads, FRONT_ENDS["optax"], "auto")


def other_form(case: Case, params: list[Floats], grads: list[Floats]) -> Contestant:
    """The same as XLA compiles it, without kernels."""
    return _form(case, params, grads, OTHER_FORMS["optax"], "xla")


def _form(
    case: Case, params: list[Floats], grads: list[Floats], name: str, engine: str
) -> Contestant:
    options: dict[str, Any] = {"learning_rate": LEARNING_RATE[case.rule], **case.hyperparameters}
    if case.composite:
        ema = EMA(EMA_MOMENTUM, start="initial")
        options |= {"clip": Clip(global_norm=GLOBAL_NORM), "ema": ema}
    optimizer = getattr(isostep.jax, case.rule.lower())(**options, engine=engine)
    compiled = jax.jit(optimizer.apply, donate_argnums=(0, 2))
    gradients = [jnp.array(g) for g in grads]
    values = [jnp.array(p) for p in params]
    kept = [(values, optimizer.init(values))]
    del values

    def step() -> None:
        kept[0] = compiled(kept[0][0], gradients, kept[0][1])
        jax.block_until_ready(kept[0])

    return Contestant(name, name, step)


def versions() -> dict[str, str]:
    """The versions of JAX and optax."""
    return {"jax": jax.__version__, "optax": optax.__version__}
