"""Run as a process: what users of tf_keras do to an optimizer between two steps.

Prints, for each edit, what isostep and tf_keras' own class raised after it, whether isostep changed
something in a call that raised, and how far the two are apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

import isostep.tf_keras

HYPER = {
    "learning_rate": 0.125,
    "weight_decay": 0.25,
    "beta_1": 0.5,
    "beta_2": 0.75,
    "epsilon": 0.25,
    "name": "own",
}
SHAPES = {"matrix": (4, 6), "vector": (5,)}


class World:
    """An optimizer and what it steps.

    Args:
        module: where its class is from.
        compiled: whether one program, made before the edit, takes all steps.
    """

    def __init__(self, module: Any, compiled: bool) -> None:
        random = np.random.default_rng(0)
        self.variables = [
            tf.Variable(random.normal(size=shape).astype("float32"), name=name)
            for name, shape in SHAPES.items()
        ]
        self.stepped = list(self.variables)
        self.optimizer = module.AdamW(**HYPER)
        self.optimizer.build(self.variables)
        self.gradient: Callable[[Any], Any] = lambda g: g
        self._apply = tf.function(self._pairs, autograph=False) if compiled else self._pairs

    def _pairs(self, grads: Any) -> None:
        self.optimizer.apply_gradients(list(zip(grads, self.stepped, strict=True)))

    def step(self, taken: int) -> None:
        random = np.random.default_rng(taken + 1)
        grads = [random.normal(size=v.shape).astype("float32") for v in self.stepped]
        self._apply([self.gradient(tf.constant(g)) for g in grads])

    def values(self) -> list[Any]:
        """Everything that a step changes."""
        kept = [*self.variables, *self.optimizer.variables]
        return [np.asarray(v, "float64") for v in kept]


def _set(name: str, value: Any) -> Callable[[World], None]:
    return lambda w: setattr(w.optimizer, name, value)


def _halved(world: World) -> list[Any]:
    return [np.asarray(v) * 0.5 for v in world.optimizer.variables]


def _later(world: World) -> None:
    world.stepped.append(tf.Variable(np.ones((2, 2), "float32"), name="later"))


def _grown(world: World) -> None:
    _later(world)
    world.optimizer.build(world.stepped)


EDITS: dict[str, Callable[[World], Any]] = {
    "variable assigned": lambda w: w.variables[0].assign(tf.fill(w.variables[0].shape, 0.5)),
    "slot assigned": lambda w: w.optimizer.variables[2].assign(w.optimizer.variables[2] * 0.5),
    "iterations assigned": lambda w: w.optimizer.iterations.assign(7),
    "iterations replaced": _set("iterations", 7),
    "rate set": _set("learning_rate", 0.5),
    "rate set by its old name": _set("lr", 0.5),
    "rate assigned": lambda w: w.optimizer.learning_rate.assign(0.5),
    "rate a schedule": _set(
        "learning_rate", tf_keras.optimizers.schedules.ExponentialDecay(0.5, 2, 0.5)
    ),
    "weights set": lambda w: w.optimizer.set_weights(_halved(w)),
    "too few weights set": lambda w: w.optimizer.set_weights(_halved(w)[:-1]),
    "excluded": lambda w: w.optimizer.exclude_from_weight_decay(var_names=["vec"]),
    "weight decay": _set("weight_decay", 0.5),
    "no weight decay": _set("weight_decay", None),
    "clipnorm": _set("clipnorm", 0.5),
    "global_clipnorm": _set("global_clipnorm", 0.5),
    "clipvalue": _set("clipvalue", 0.25),
    "average": _set("use_ema", True),
    "beta": _set("beta_1", 0.75),
    "epsilon": _set("epsilon", 1.0),
    "amsgrad": _set("amsgrad", True),
    "jit_compile": _set("jit_compile", False),
    "built again": lambda w: w.optimizer.build([w.variables[0]]),
    "built for more": _grown,
    "unknown variable": _later,
    "one variable": lambda w: w.stepped.pop(),
    "other order": lambda w: w.stepped.reverse(),
    "gradient of NumPy": lambda w: setattr(w, "gradient", lambda g: g.numpy()),
}
BETWEEN_PROGRAMS = ("variable assigned", "iterations assigned", "rate assigned", "weights set")
"""Those that are tried between two calls of a compiled step, too."""


def run(module: Any, edit: Callable[[World], Any], compiled: bool) -> tuple[Any, list[Any]]:
    """What two steps, an edit and two steps come to; which calls raised, and how many of those
    have changed something."""
    world = World(module, compiled)
    raised: list[str] = []
    changed = 0
    for taken in (0, 1):
        world.step(taken)
    for call in (lambda: edit(world), lambda: world.step(2), lambda: world.step(3)):
        before = world.values()
        try:
            call()
        except Exception as error:
            raised.append(f"{type(error).__name__}: {error}"[:200])
            changed += not all(map(np.array_equal, before, world.values()))
    return {"raised": raised, "changed": changed}, world.values()


def compare(edit: Callable[[World], Any], compiled: bool) -> dict[str, Any]:
    """What each of the two raised, and how far they are apart."""
    modules = tf_keras.optimizers, isostep.tf_keras
    (theirs, a), (ours, b) = (run(module, edit, compiled) for module in modules)
    far = max(float(abs(x - y).max()) for x, y in zip(a, b, strict=True))
    return {"theirs": theirs, "ours": ours, "far": far}


if __name__ == "__main__":
    cells = [(name, False) for name in EDITS] + [(name, True) for name in BETWEEN_PROGRAMS]
    table = {f"{n}{', compiled' * c}": compare(EDITS[n], c) for n, c in cells}
    print(json.dumps(table))
