"""Run as a process on any backend of Keras: what users do to an optimizer between two steps.

Prints, for each edit, rule and way to step, how far isostep is from Keras' own class after the
same, or what each of them raised; and what ran.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import backend, ops

import isostep.keras

RULES: dict[str, dict[str, Any]] = {
    "AdamW": {
        "learning_rate": 0.125,
        "weight_decay": 0.25,
        "beta_1": 0.5,
        "beta_2": 0.75,  # Keras takes 1 - beta_2 ** t in float32, which is inexact near 1
        "epsilon": 0.25,
    },
    "SGD": {"learning_rate": 0.125, "momentum": 0.75, "nesterov": True},
    "Adafactor": {"learning_rate": 0.125},
}
SHAPES = {"matrix": (4, 6), "vector": (5,)}


class World:
    """An optimizer and what it steps.

    Args:
        module: where its class is from.
        rule: the class.
        compiled: whether the step is compiled: a program that was made before the edit goes on.
    """

    def __init__(self, module: Any, rule: str, compiled: bool) -> None:
        random = np.random.default_rng(0)
        self.variables = [
            keras.Variable(random.normal(size=shape).astype("float32"), name=name)
            for name, shape in SHAPES.items()
        ]
        self.optimizer = getattr(module, rule)(**RULES[rule], name="own")
        self.optimizer.build(self.variables)
        self.stepped = list(self.variables)
        self.gradient: Callable[[int, Any], Any] = lambda k, g: g
        self._compiled = compiled
        self._program: Any = None

    def step(self, taken: int) -> None:
        random = np.random.default_rng(taken + 1)
        grads = [random.normal(size=tuple(v.shape)).astype("float32") for v in self.stepped]
        given = [self.gradient(k, ops.convert_to_tensor(g)) for k, g in enumerate(grads)]
        if not self._compiled:
            self.optimizer.apply(given, self.stepped)
        elif backend.backend() == "tensorflow":
            self._on_tensorflow(given)
        else:
            self._on_jax(given)

    def _on_tensorflow(self, given: Any) -> None:
        import tensorflow as tf

        if self._program is None:
            self._program = tf.function(lambda g: self.optimizer.apply(g, self.stepped))
        self._program(given)

    def _on_jax(self, given: Any) -> None:
        """As Keras' trainer: state in, new state out, and it is assigned."""
        import jax

        if self._program is None:
            self._program = jax.jit(self.optimizer.stateless_apply)
        kept = self.optimizer.variables
        new, state = self._program([v.value for v in kept], given, [v.value for v in self.stepped])
        for variable, value in zip([*self.stepped, *kept], [*new, *state], strict=True):
            variable.assign(value)

    def values(self) -> dict[str, Any]:
        """Everything that a step changes."""
        named = {v.path: v for v in [*self.variables, *self.optimizer.variables]}
        return {k: np.asarray(ops.convert_to_numpy(v), "float64") for k, v in named.items()}


def _set(**settings: Any) -> Callable[[World], None]:
    def edit(world: World) -> None:
        for name, value in settings.items():
            assert hasattr(world.optimizer, name)
            setattr(world.optimizer, name, value)

    return edit


def _scaled(world: World) -> list[Any]:
    return [ops.convert_to_numpy(v) * 0.5 for v in world.optimizer.variables]


def _loaded(world: World) -> None:
    store: dict[str, Any] = {}
    world.optimizer.save_own_variables(store)
    store = {k: np.asarray(v) * 0.5 if k != "0" else v for k, v in store.items()}
    world.optimizer.load_own_variables(store)


def _from_config(world: World) -> None:
    made = type(world.optimizer).from_config(world.optimizer.get_config())
    made.build(world.variables)
    world.optimizer = made


def _frozen(world: World) -> None:
    world.variables[0].trainable = False


def _unknown(world: World) -> None:
    world.stepped = [keras.Variable(np.ones((2, 2), "float32"), name="later")]


def _only_first(world: World) -> None:
    world.stepped = world.stepped[:1]


def _reversed(world: World) -> None:
    world.stepped = world.stepped[::-1]


def _gradients(change: Callable[[int, Any], Any]) -> Callable[[World], None]:
    def edit(world: World) -> None:
        world.gradient = change

    return edit


def _constrained(world: World) -> None:
    world.variables[0].constraint = keras.constraints.NonNeg()


def _slot(world: World) -> Any:
    return next(v for v in world.optimizer.variables[2:] if tuple(v.shape))


EDITS: dict[str, Callable[[World], Any]] = {
    "nothing": lambda w: None,
    "variable assigned": lambda w: w.variables[0].assign(np.full(w.variables[0].shape, 0.5)),
    "variable added to": lambda w: w.variables[0].assign_add(np.full(w.variables[0].shape, 0.5)),
    "value set": lambda w: setattr(w.variables[0], "_value", w.variables[0]._value * 0.5),
    "slot assigned": lambda w: _slot(w).assign(ops.convert_to_tensor(_slot(w)) * 0.5),
    "iterations assigned": lambda w: w.optimizer.iterations.assign(7),
    "iterations back": lambda w: w.optimizer.iterations.assign(0),
    "rate set": _set(learning_rate=0.5),
    "rate assigned": lambda w: w.optimizer.learning_rate.assign(0.5),
    "rate's variable assigned": lambda w: w.optimizer._learning_rate.assign(0.5),
    "rate a schedule": lambda w: setattr(
        w.optimizer, "learning_rate", keras.optimizers.schedules.ExponentialDecay(0.5, 2, 0.5)
    ),
    "weights set": lambda w: w.optimizer.set_weights(_scaled(w)),
    "too few weights set": lambda w: w.optimizer.set_weights(_scaled(w)[:-1]),
    "state loaded": _loaded,
    "state loaded, too short": lambda w: w.optimizer.load_own_variables({"0": np.int64(3)}),
    "made anew": _from_config,
    "deep copy": lambda w: setattr(w, "optimizer", copy.deepcopy(w.optimizer)),
    "excluded by name": lambda w: w.optimizer.exclude_from_weight_decay(var_names=["vec"]),
    "excluded by variable": lambda w: w.optimizer.exclude_from_weight_decay([w.variables[0]]),
    "built again": lambda w: w.optimizer.build([w.variables[0]]),
    "frozen": _frozen,
    "unknown variable": _unknown,
    "one variable": _only_first,
    "other order": _reversed,
    "constraint": _constrained,
    "weight decay": _set(weight_decay=0.5),
    "no weight decay": _set(weight_decay=None),
    "clipnorm": _set(clipnorm=0.5),
    "global_clipnorm": _set(global_clipnorm=0.5),
    "clipvalue": _set(clipvalue=0.25),
    "average": _set(use_ema=True),
    "scale": _set(loss_scale_factor=4.0),
    "accumulation": _set(gradient_accumulation_steps=2),
    "gradient of NumPy": _gradients(lambda k, g: ops.convert_to_numpy(g)),
    "gradient in float16": _gradients(lambda k, g: ops.cast(g, "float16")),
    "no gradient": _gradients(lambda k, g: None if k else g),
    "no gradients": _gradients(lambda k, g: None),
    "gradient of another shape": _gradients(lambda k, g: g[:1] if k else g),
    "gradient that fits by broadcast": _gradients(lambda k, g: g[0, 0] if g.ndim == 2 else g),
}
OF_RULE: dict[str, dict[str, Callable[[World], Any]]] = {
    "AdamW": {
        "beta": _set(beta_1=0.75, beta_2=0.5),
        "epsilon": _set(epsilon=1.0),
        "amsgrad": _set(amsgrad=True),
    },
    "SGD": {
        "momentum": _set(momentum=0.25),
        "no momentum": _set(momentum=0.0),
        "nesterov": _set(nesterov=False),
    },
    "Adafactor": {
        "clip": _set(clip_threshold=0.5),
        "relative": _set(relative_step=False),
        "decay": _set(beta_2_decay=-0.5),
    },
}


BETWEEN_PROGRAMS = ("variable assigned", "iterations assigned", "rate assigned", "weights set")
"""Those that are tried between two calls of a compiled step, too."""


def _deleted(world: World) -> None:
    """A step over an array that was donated raises; then there is another."""
    variable = world.variables[0]
    value = variable.value
    variable._value = value + 0
    variable._value.delete()
    try:
        world.step(2)
    except RuntimeError:
        variable._value = value
    else:
        raise AssertionError("a deleted array was stepped")


if backend.backend() == "jax":
    EDITS["deleted"] = _deleted
    EDITS["slot in bfloat16"] = lambda w: setattr(
        _slot(w), "_value", _slot(w)._value.astype("bfloat16")
    )


def run(module: Any, rule: str, edit: Callable[[World], Any], compiled: bool) -> tuple[Any, World]:
    """What two steps, an edit and two steps come to, which calls raised, and whether one of those
    has changed something."""
    world = World(module, rule, compiled)
    raised: list[str] = []
    changed: list[str] = []

    def attempt(call: Callable[[], Any]) -> None:
        before = world.values()
        try:
            call()
        except Exception as error:
            raised.append(f"{type(error).__name__}: {error}"[:200])
            after = world.values()
            changed.extend(k for k in before if not np.array_equal(before[k], after[k]))

    for taken in range(2):
        world.step(taken)
    attempt(lambda: edit(world))
    for taken in (2, 3):
        attempt(lambda taken=taken: world.step(taken))
    return {"raised": raised, "changed": changed}, world


def compare(rule: str, edit: Callable[[World], Any], compiled: bool) -> dict[str, Any]:
    """What each of the two raised, and how far they are apart."""
    keras.utils.clear_session()
    (theirs, one), (ours, two) = (
        run(module, rule, edit, compiled) for module in (keras.optimizers, isostep.keras)
    )
    a, b = one.values(), two.values()
    far = max(float(abs(a[k] - b[k]).max()) for k in b if k in a)
    return {"theirs": theirs, "ours": ours, "far": far, "ran": two.optimizer.ran}


if __name__ == "__main__":
    cells = [
        *(("AdamW", name, edit, False) for name, edit in EDITS.items()),
        *((rule, n, e, False) for rule, edits in OF_RULE.items() for n, e in edits.items()),
    ]
    if backend.backend() != "torch":
        cells += [("AdamW", name, EDITS[name], True) for name in BETWEEN_PROGRAMS]
    table = {
        f"{rule}, {name}{', compiled' * compiled}": compare(rule, edit, compiled)
        for rule, name, edit, compiled in cells
    }
    print(json.dumps(table))
