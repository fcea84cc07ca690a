"""States of optax and of isostep.jax: prints how far training ends from optax' own, by updates and
in the fused form."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

import isostep.jax
from tests.jax_frontend.contract_worker import RULES

from .exchange import Way, differences, gradient, tell

SHAPES = {"scalar": (), "vector": (5,), "matrix": (4, 6), "kernel": (6, 2, 3, 3)}
MODULES = {"theirs": optax, "ours": isostep.jax}
# One of these is rounded too coarsely to compare, and the other climbs.
EACH = [rule for rule in RULES if rule not in ("adamw mu", "adadelta bare")]
STATIC = {"adafactor": ("min_dim_size_to_factor", "dtype_momentum")}


@cache
def alone(who: str, rule: str) -> tuple[Any, Any]:
    """An optimizer, and its step by updates."""
    name, given = RULES[rule]
    optimizer = getattr(MODULES[who], name)(**given)
    return optimizer, jax.jit(partial(updated, optimizer))


@cache
def fused(who: str, rule: str) -> tuple[Any, Any]:
    """The same, by `apply` where there is one."""
    optimizer, step = alone(who, rule)
    return optimizer, jax.jit(optimizer.apply) if who == "ours" else step


@cache
def wrapped(who: str, rule: str) -> tuple[Any, Any]:
    """The same within optax' wrappers, with its hyperparameters in the state."""
    name, given = RULES[rule]
    make = getattr(MODULES[who], name)
    injected = optax.inject_hyperparams(make, static_args=STATIC.get(name, ()))(**given)
    mask = {name: name != "vector" for name in SHAPES}
    optimizer = optax.chain(optax.clip_by_global_norm(4.0), optax.masked(injected, mask))
    return optimizer, jax.jit(partial(updated, optimizer))


def updated(optimizer: Any, params: Any, grads: Any, state: Any) -> Any:
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


class Training:
    """Parameters and a state."""

    def __init__(self, made: Callable[[str, str], tuple[Any, Any]], who: str, rule: str) -> None:
        self.rule = rule
        self.optimizer, self._step = made(who, rule)
        random = np.random.default_rng(0)
        self.params: Any = {n: jnp.asarray(random.normal(size=s)) for n, s in SHAPES.items()}
        self.state = self.optimizer.init(self.params)

    def run(self, steps: range) -> None:
        for step in steps:
            grads = {n: gradient(step, k, shape) for k, (n, shape) in enumerate(SHAPES.items())}
            self.params, self.state = self._step(self.params, grads, self.state)

    def values(self) -> list[Any]:
        return [np.asarray(self.params[name]) for name in SHAPES]

    def take(self, values: list[Any]) -> None:
        self.params = dict(zip(SHAPES, map(jnp.asarray, values), strict=True))


def given(training: Training, state: Any) -> None:
    training.state = state


def pickled(training: Training) -> bytes:
    return pickle.dumps(jax.tree.map(np.asarray, training.state))


def flax_bytes(training: Training) -> bytes:
    return flax.serialization.to_bytes(training.state)


def from_flax(training: Training, saved: bytes) -> None:
    training.state = flax.serialization.from_bytes(training.state, saved)


def checkpoint(training: Training) -> Any:
    folder = tempfile.TemporaryDirectory()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(folder.name) / "state", training.state)
    return folder


def from_checkpoint(training: Training, folder: Any) -> None:
    shapes = jax.eval_shape(training.optimizer.init, training.params)
    with ocp.StandardCheckpointer() as checkpointer:
        training.state = checkpointer.restore(Path(folder.name) / "state", shapes)


WAYS = {
    "state": Way(lambda t: t.state, given),
    "pickle": Way(pickled, lambda t, saved: given(t, pickle.loads(saved))),
    "flax": Way(flax_bytes, from_flax),
    "orbax": Way(checkpoint, from_checkpoint),
}


def with_an_average(training: Training) -> Any:
    """A state that went through ours with more to keep, and back."""
    name, given = RULES[training.rule]
    more = getattr(isostep.jax, name)(**given, ema=0.5, report=True)
    return more.to_optax(more.from_optax(training.state, training.params), training.params)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    found = differences(EACH, partial(Training, alone), WAYS, ("sgd",))
    state = {"state": WAYS["state"], "average": Way(with_an_average, given)}
    in_one = differences(EACH, partial(Training, fused), state, ("sgd",))
    some = ("sgd momentum", "rmsprop centered", "adamw", "adafactor momentum")
    inside = differences(some, partial(Training, wrapped), {"flax": WAYS["flax"]})
    found |= {f"{case}, fused": far for case, far in in_one.items()}
    tell(found | {f"{case}, wrapped": far for case, far in inside.items()})
