"""What tf_keras takes: gradients, variables and hyperparameters in all their forms.

`python -m tests.tf_keras_frontend.inputs` prints one JSON object.
"""

from __future__ import annotations

import gc
import json
import random
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow.experimental import dtensor

import isostep.tf_keras
from tests.keras_rules import RULES

BOTH = {"theirs": tf_keras.optimizers, "ours": isostep.tf_keras}


def error(call: Callable[[], Any]) -> list[str]:
    try:
        call()
    except Exception as raised:
        return [type(raised).__name__, str(raised)]
    return ["", ""]


def far(ends: dict[str, list[Any]]) -> float:
    pairs = zip(ends["theirs"], ends["ours"], strict=True)
    return max(float(np.max(np.abs(np.asarray(a) - b))) for a, b in pairs if np.size(b))


def repeated() -> dict[str, float]:
    """A variable twice in one call, for every rule, between ordinary steps."""
    found: dict[str, float] = {}
    for rule, given in {**RULES, "SGD plain": {"learning_rate": 0.0625}}.items():
        options = {"weight_decay": 0.0625, "global_clipnorm": 2.0, "use_ema": True}
        ends: dict[str, list[Any]] = {}
        for who, module in BOTH.items():
            a, b = tf.Variable([[1.0, 2.0]], dtype="float64"), tf.Variable(np.ones(3))
            optimizer = getattr(module, rule.split()[0])(**{**options, **given})
            for k in range(4):
                pairs = [(a * (k + 1.0), a), (b * 2.0, b), (a * 0.5, a)]
                optimizer.apply_gradients(pairs if k % 2 else pairs[:2])
            ends[who] = [a.numpy(), b.numpy(), *(v.numpy() for v in optimizer.variables)]
        if rule == "SGD plain":  # tf_keras' buffer, which nothing reads, was last written in step 4
            ends = {who: end[:2] for who, end in ends.items()}
        found[rule] = far(ends)
    return found


def empty() -> dict[str, float]:
    """Variables with an axis of no length beside others."""
    found: dict[str, float] = {}
    for rule, given in RULES.items():
        ends: dict[str, list[Any]] = {}
        for who, module in BOTH.items():
            shapes = ((0, 3), (3, 0), (0,), (2, 0, 4), (0, 0), (2, 2))
            variables = [tf.Variable(np.ones(shape)) for shape in shapes]
            optimizer = getattr(module, rule)(**given, clipnorm=1.0)
            for _ in range(3):
                optimizer.apply_gradients([(tf.ones_like(v), v) for v in variables])
            ends[who] = [v.numpy() for v in variables]
        found[rule] = far(ends)
    return found


def forms() -> dict[str, Any]:
    """Gradients that are no tensors, and sparse ones without dense shape."""
    found: dict[str, Any] = {}
    start = np.arange(6.0).reshape(3, 2)
    for name, gradient in {
        "array": start,
        "float32 array": start.astype("float32"),
        "integers": start.astype("int32"),
        "lists": start.tolist(),
        "variable": tf.Variable(start),
        "tensor": tf.constant(start),
    }.items():
        variable = tf.Variable(start)
        isostep.tf_keras.SGD(0.5).apply_gradients([(gradient, variable)])
        found[name] = far({"theirs": [start * 0.5], "ours": [variable.numpy()]})
    for options in ({}, {"clipnorm": 1.0}, {"global_clipnorm": 1.0}, {"clipvalue": 0.5}):
        ends: dict[str, list[Any]] = {}
        for who, module in BOTH.items():
            variable = tf.Variable(start)
            optimizer = module.Adam(0.5, beta_1=0.75, beta_2=0.9375, epsilon=0.125, **options)
            for _ in range(2):
                rows = tf.IndexedSlices(tf.ones((2, 2), "float64"), tf.constant([2, 0]))
                optimizer.apply_gradients([(rows, variable)])
            ends[who] = [variable.numpy()]
        found[f"no dense shape, {[*options]}"] = far(ends)
    return found


ARGUMENTS = {
    "AdamW": ("beta_1", "beta_2", "epsilon", "weight_decay"),
    "SGD": ("momentum", "clipnorm", "clipvalue", "global_clipnorm"),
    "RMSprop": ("rho", "momentum", "epsilon"),
    "Adagrad": ("epsilon",),
    "Adadelta": ("rho", "epsilon"),
    "Adafactor": ("epsilon_1", "epsilon_2", "clip_threshold", "beta_2_decay"),
}


class Held:
    """A value that changes, as a variable, and as callables without arguments that read it."""

    def __init__(self, value: float) -> None:
        self.now, self.variable = value, tf.Variable(value, dtype="float64")

    def set(self, value: float) -> None:
        self.now = value
        self.variable.assign(value)

    def number(self) -> float:
        return self.now

    def tensor(self) -> Any:
        return self.variable + 0.0


def hyperparameters() -> dict[str, list[float]]:
    """Values that change between steps: far from the same values as numbers, which steps of an
    optimizer made anew have; and how far a value that is not read again would have ended."""
    found: dict[str, list[float]] = {}
    for rule, names in ARGUMENTS.items():
        for name in names:
            sign = -1.0 if name == "beta_2_decay" else 1.0
            first, second = sign * 0.5, sign * 0.125
            expected, stale = _trained(rule, name, first, second), _trained(rule, name, first)
            ends = []
            for kind in ("variable", "number", "tensor"):
                held = Held(first)
                ends.append(_trained(rule, name, getattr(held, kind), partial(held.set, second)))
            fixed = _trained(rule, name, tf.constant(first, "float64"))
            apart = [float(np.max(np.abs(end - expected))) for end in ends]
            apart.append(float(np.max(np.abs(fixed - stale))))
            found[f"{rule} {name}"] = [max(apart), float(np.max(np.abs(stale - expected)))]
    return found


def _trained(rule: str, name: str, value: Any, change: Any = None) -> Any:
    """The variable after four steps; a hyperparameter is changed after two."""
    start = np.linspace(-1.0, 2.0, 6).reshape(2, 3) / 16
    variable = tf.Variable(start)
    optimizer = getattr(isostep.tf_keras, rule)(0.25, **{name: value}, jit_compile=False)
    for k in range(4):
        if k == 2 and callable(change):
            change()
        elif k == 2 and change is not None:
            setattr(optimizer, name, change)
        optimizer.apply_gradients([(tf.constant(start * (k + 1.0) - 0.25), variable)])
    return variable.numpy()


def gradient_sets() -> dict[str, Any]:
    """Eager steps of changing sets of variables are those of tf_keras, with few programs."""
    found: dict[str, Any] = {"apart": {}}
    options = {
        "weight_decay": 0.0625,
        "global_clipnorm": 2.0,
        "use_ema": True,
        "ema_overwrite_frequency": 3,
    }
    for rule, given in RULES.items():
        ends: dict[str, list[Any]] = {}
        for who, module in BOTH.items():
            draw = random.Random(0)
            numbers = np.random.default_rng(0)
            variables = [tf.Variable(numbers.normal(size=(3, 2))) for _ in range(6)]
            optimizer = getattr(module, rule)(**{**options, **given})
            optimizer.build(variables)
            for _ in range(12):
                chosen = [v for v in variables if draw.random() < 0.5] or variables[:1]
                grads = [tf.constant(numbers.normal(size=(3, 2))) for _ in chosen]
                if draw.random() < 0.5:
                    rows = tf.constant(numbers.normal(size=(2, 2)))
                    grads[0] = tf.IndexedSlices(rows, [2, 0], (3, 2))
                optimizer.apply_gradients(list(zip(grads, chosen, strict=True)))
            ends[who] = [v.numpy() for v in (*variables, *optimizer.variables)]
        if rule == "Adafactor":  # its full second moment is not kept
            ends = {who: end[:6] for who, end in ends.items()}
        found["apart"][rule] = far(ends)
    return found | _programs()


def _programs() -> dict[str, Any]:
    """Traces of the step in an eager loop, a report and a step that is skipped."""
    draw = random.Random(0)
    variables = [tf.Variable(np.ones((4, 4))) for _ in range(10)]
    optimizer = isostep.tf_keras.Adam(0.125, report=True, nonfinite="skip", lazy=True)
    optimizer.build(variables)
    traces = 0
    written = optimizer._step._write

    def counted(*args: Any) -> None:
        nonlocal traces
        traces += 1
        written(*args)

    optimizer._step._write = counted
    for k in range(20):
        chosen = [v for v in variables if draw.random() < 0.5] or variables[:1]
        grads: list[Any] = [tf.ones((4, 4), "float64") for _ in chosen]
        if chosen[0] is variables[0]:
            rows = list(range(1 + k % 3))
            grads[0] = tf.IndexedSlices(tf.ones((len(rows), 4), "float64"), rows, (4, 4))
        optimizer.apply_gradients(list(zip(grads, chosen, strict=True)))
    group = optimizer.report.groups[0]
    numbers = [(g.values if isinstance(g, tf.IndexedSlices) else g).shape for g in grads]
    size = sum(int(np.prod(shape)) for shape in numbers)
    before = [v.numpy() for v in variables]
    optimizer.apply_gradients([(tf.fill((4, 4), tf.constant(np.nan, "float64")), variables[5])])
    gc.collect()
    return {
        "traces": traces,
        "grad_norm": [group.grad_norm, size**0.5],
        "skipped": optimizer.report.skipped,
        "still": all(np.array_equal(x, v.numpy()) for x, v in zip(before, variables, strict=True)),
    }


def messages() -> dict[str, list[str]]:
    """What wrong calls say."""
    made = isostep.tf_keras
    v = tf.Variable(np.ones(2), name="v")
    grid = dtensor.create_mesh([("x", 2)], devices=["CPU:0", "CPU:1"])
    other = dtensor.create_mesh([("y", 2)], devices=["CPU:0", "CPU:1"])
    whole = dtensor.Layout.replicated(grid, rank=1)
    on_mesh = dtensor.DVariable(dtensor.copy_to_mesh(tf.ones(2), whole), name="d")
    twice = made.SGD(nonfinite="skip", groups=[{"match": "v", "momentum": 0.5}])
    g = tf.ones(2, "float64")
    stored: dict[str, Any] = {}
    adam = made.Adam()
    adam.build([v])
    adam.save_own_variables(stored)
    sgd = made.SGD(momentum=0.5)
    sgd.build([v])
    return {
        "off the mesh": error(lambda: made.SGD(mesh=grid).build([v])),
        "another mesh": error(lambda: made.SGD(mesh=other).build([on_mesh])),
        "optimizer off the mesh": error(lambda: made.SGD().build([on_mesh])),
        "update_step before build": error(lambda: made.SGD().update_step(g, v)),
        "twice": error(lambda: twice.apply_gradients([(g, v), (g, v)])),
        "state of another": error(lambda: sgd.load_own_variables(stored)),
    }


LOOKS: dict[str, Callable[[], Any]] = {
    f.__name__: f for f in (repeated, empty, forms, hyperparameters, gradient_sets, messages)
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    device = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
    tf_keras.backend.set_floatx("float64")
    print(json.dumps({name: look() for name, look in LOOKS.items()}))
