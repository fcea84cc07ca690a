"""Every method of tf_keras' optimizers overridden, on tf_keras' own class and on isostep's.

`python -m tests.tf_keras_frontend.extension_points` prints what differs, by class and method.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

import isostep.tf_keras
from isostep import Group, HyperparameterError, dialects

RULES: dict[str, dict[str, Any]] = {
    "SGD": {"learning_rate": 0.0625},
    "Adam": {"learning_rate": 0.0625, "beta_1": 0.75, "beta_2": 0.9375, "amsgrad": True},
    "Adafactor": {"learning_rate": 0.25, "epsilon_1": 1e-4},
}
OPTIONS: dict[str, Any] = {
    "weight_decay": 0.0625,
    "global_clipnorm": 2.0,
    "use_ema": True,
    "ema_momentum": 0.75,
    "ema_overwrite_frequency": 2,
}
TRACKING = tf.__internal__.tracking.AutoTrackable
# Made while an object is still without attributes, or read by TensorFlow whenever it likes.
BEFORE = {"_process_kwargs", "_create_iteration_variable", "_trackable_children", "variables"}


def methods(cls: Any) -> dict[str, Any]:
    """Methods and properties of tf_keras' class and its bases, by name."""
    found: dict[str, Any] = {}
    for base in reversed([c for c in cls.__mro__ if c not in TRACKING.__mro__]):
        found |= {n: m for n, m in vars(base).items() if callable(m) or isinstance(m, property)}
    unusable = {n for n in found if n.startswith("__")} | BEFORE | {"_update_step_xla"}
    return {n: m for n, m in found.items() if n not in unusable}


def changed(value: Any) -> Any:
    """What an override makes of a result."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list) and value and all(map(tf.is_tensor, value)):
        return [2 * g if not isinstance(g, tf.IndexedSlices) else g for g in value]
    return value


def overriding(cls: Any, name: str, method: Any, calls: Counter[Any]) -> Any:
    """A class of which one method is counted, changes what it gives and moves a variable."""

    def act(self: Any, result: Any, *args: Any) -> Any:
        kinds = tuple("sparse" for a in args if isinstance(a, tf.IndexedSlices))
        calls[kinds] += 1
        if self.moved is not None and not name.startswith("add_variable"):
            self.moved.assign_add(tf.fill(self.moved.shape, tf.constant(0.125, "float64")))
        return changed(result)

    if isinstance(method, property):

        def read(self: Any) -> Any:
            held = getattr(super(made, self), name)
            return held * 0.5 if name in ("learning_rate", "lr") else held

        own: Any = property(read, method.fset)
    else:

        def own(self: Any, *args: Any, **kwargs: Any) -> Any:
            return act(self, getattr(super(made, self), name)(*args, **kwargs), *args)

    made = type(f"Own{cls.__name__}", (cls,), {name: own, "moved": None})
    return made


def train(cls: Any, given: dict[str, Any]) -> list[Any]:
    """Some steps, and whatever else an optimizer is asked for; the variables after it."""
    random = np.random.default_rng(0)
    table = tf.Variable(random.normal(size=(5, 3)), name="table")
    vector = tf.Variable(random.normal(size=4), name="vector")
    other = tf.Variable(random.normal(size=2), name="other")
    optimizer = cls(**given, **OPTIONS)
    optimizer.exclude_from_weight_decay(var_names=["vector"])
    optimizer.build([table, vector, other])
    optimizer.moved = vector
    for _ in range(3):
        rows = tf.IndexedSlices(tf.constant(random.normal(size=(3, 3))), [1, 4, 0], (5, 3))
        pairs = [(rows, table), (tf.constant(random.normal(size=4)), vector)]
        optimizer.apply_gradients([*pairs, (tf.ones(2, "float64"), other)])
    optimizer.minimize(lambda: tf.reduce_sum(vector**2 + table[0, 0]), [table, vector])
    optimizer.get_config()
    optimizer.set_weights(optimizer.variables)
    optimizer.finalize_variable_values([table, vector, other])
    return [v.numpy() for v in (table, vector, other)]


def differences(found: dict[str, str]) -> int:
    """What an override does to isostep's class and not to tf_keras'; how many were tried."""
    tried = 0
    points = dialects.get("tf_keras").extension_points
    for rule, given in RULES.items():
        theirs, ours = (getattr(m, rule) for m in (tf_keras.optimizers, isostep.tf_keras))
        plain = train(ours, given)
        for name, method in methods(theirs).items():
            tried += 1
            counts: list[Counter[Any]] = [Counter(), Counter()]
            expected, values = (
                train(overriding(cls, name, method, calls), given)
                for cls, calls in zip((theirs, ours), counts, strict=True)
            )
            apart = max(float(np.max(np.abs(x - y))) for x, y in zip(expected, values, strict=True))
            if not apart < 1e-12 or counts[0] != counts[1]:
                found[f"{rule}.{name}"] = f"{apart:.1e}, calls {counts}"
            same = all(np.array_equal(x, y) for x, y in zip(plain, values, strict=True))
            if name in points and counts[0] and same:
                found[f"{rule}.{name}"] = "no effect"
    return tried


def accepted() -> list[str]:
    """Options of isostep that an override does not refuse."""

    class Own(isostep.tf_keras.Adam):
        def update_step(self, gradient: Any, variable: Any) -> None:
            super().update_step(gradient, variable)

    found: list[str] = []
    options = {"nonfinite": "skip", "report": True, "lazy": True, "groups": [Group("a", lr=0.1)]}
    for name, value in options.items():
        try:
            Own(**{name: value})
            found.append(name)
        except HyperparameterError as error:
            if name not in str(error) or "update_step" not in str(error):
                found.append(str(error))
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    tf_keras.backend.set_floatx("float64")
    seen = {name for rule in RULES for name in methods(getattr(tf_keras.optimizers, rule))}
    listed = set(dialects.get("tf_keras").extension_points) - {"_update_step_xla"}
    results: dict[str, Any] = {"differences": {}, "unknown": sorted(listed - seen)}
    results["tried"] = differences(results["differences"])
    results["accepted"] = accepted()
    print(json.dumps(results))
