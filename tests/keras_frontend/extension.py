"""Subclasses that override one method of Keras' optimizers each: `python -m
tests.keras_frontend.extension`, on the backend that `KERAS_BACKEND` says.

Prints one JSON object. `found`: for each method and way of overriding it, the calls and the end of
training of a subclass of Keras' class and of one of isostep's. `plain`: the end without override.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import isostep
import isostep.keras
from isostep.dialects import get

CLASSES = {"keras": keras.optimizers, "isostep": isostep.keras}
SHAPE = (2, 3)
OPTIONS = {"learning_rate": 0.25, "weight_decay": 0.125, "use_ema": True}
EACH_STEP = {**OPTIONS, "clipnorm": 0.5, "ema_overwrite_frequency": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "_rms": ("Adafactor", EACH_STEP),
    "_track_variable": ("Adafactor", EACH_STEP),
    "add_variable": ("Adafactor", EACH_STEP),
    "add_variable_from_reference": ("Adafactor", EACH_STEP),
    "_backend_increment_gradient_accumulators": ("SGD", {"gradient_accumulation_steps": 2}),
    "_backend_reset_gradient_accumulators": ("SGD", {"gradient_accumulation_steps": 2}),
}
USUAL = ("Adam", {**EACH_STEP, "amsgrad": True})
HALVED = ("_clip_by_norm", "_clip_gradients", "_get_current_learning_rate", "_rms", "learning_rate")
"""What gives arrays: an override halves them. Of others the override does nothing, which changes
the end of training as well, where the method has an effect."""
KEPT = (
    "_all_reduce_sum_gradients",
    "_get_variable_index",
    "_overwrite_variable_with_gradient",
    "_track_variable",
    "_var_key",
    "add_variable",
    "add_variable_from_reference",
    "iterations",
)
"""What a step cannot do without: these are recorded only."""
NEVER = ("__init__", "__new__", "__setattr__", "__delattr__", "__getattribute__", "__reduce__")
ATTRIBUTES_SET = "_check_super_called"
"""Called whenever an attribute is set."""


def methods(cls: type) -> dict[str, Any]:
    """Methods and properties of an optimizer of Keras', of its own classes and its backends'."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("keras."):
            found |= {name: value for name, value in vars(base).items() if _overridable(value)}
    return {k: v for k, v in found.items() if k not in (*NEVER, ATTRIBUTES_SET)}


def _overridable(value: Any) -> bool:
    return inspect.isfunction(value) or isinstance(value, property)


def halved(value: Any) -> Any:
    return [halved(v) for v in value] if isinstance(value, list) else value * 0.5


def subclass(base: type, name: str, change: str, calls: list[str]) -> type:
    """A subclass that overrides `name`, records its calls, and changes what it does if asked to."""

    def run(usual: Callable[[], Any]) -> Any:
        calls.append(name)
        if change == "halved":
            return halved(usual())
        return None if change == "left out" else usual()

    raw = inspect.getattr_static(base, name)
    if isinstance(raw, property):
        reading = property(lambda self: run(lambda: raw.fget(self)), raw.fset)
        return type(base.__name__, (base,), {name: reading})

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return run(lambda: getattr(super(made, self), name)(*args, **kwargs))

    made = type(base.__name__, (base,), {name: method})
    return made


def train(optimizer: Any) -> list[Any]:
    random = np.random.default_rng(0)
    variables = [
        keras.Variable(random.normal(size=SHAPE), dtype="float32", name=f"v{k}") for k in range(2)
    ]
    for _ in range(4):
        grads = [keras.ops.convert_to_tensor(random.normal(size=SHAPE), "float32")] * 2
        optimizer.apply(grads, variables)
    optimizer.finalize_variable_values(variables)
    return [np.array(keras.ops.convert_to_numpy(v)).tolist() for v in variables]


def ends(name: str, change: str) -> dict[str, Any]:
    rule, options = CASES.get(name, USUAL)
    found: dict[str, Any] = {}
    for who, classes in CLASSES.items():
        calls: list[str] = []
        optimizer = subclass(getattr(classes, rule), name, change, calls)(**options)
        made = len(calls)
        try:
            end: Any = train(optimizer)
        except RuntimeError as error:  # of torch, if no variable decays
            end = str(error)
        found[who] = {"calls": [made, len(calls)], "end": end, "ran": getattr(optimizer, "ran", [])}
    return found


def refused() -> list[str]:
    """What is said of options that Keras' own step does not have, and of an override that comes
    too late."""
    made = subclass(isostep.keras.Adafactor, "update_step", "", [])
    late: Any = isostep.keras.Adafactor()
    matrix = keras.Variable(np.ones(SHAPE), dtype="float32")
    late.build([matrix])
    late.update_step = lambda *_: None
    said: list[str] = []
    for act in (
        lambda: made(nonfinite="skip"),
        lambda: made(report=True),
        lambda: made(groups=[isostep.Group("v", weight_decay=0.0)]),
        lambda: late.apply([keras.ops.ones(SHAPE)], [matrix]),
    ):
        try:
            act()
            said.append("nothing")
        except isostep.HyperparameterError as error:
            said.append(str(error))
    beside: Any = isostep.keras.SGD(report=True)
    beside.update_step = lambda *_: None
    try:
        beside.apply([keras.ops.ones(SHAPE)], [matrix])
    except isostep.HyperparameterError as error:
        said.append(f"built: {beside.built}; {error}")
    return said


def on_the_object() -> list[bool]:
    """An attribute of the object overrides as a subclass does, and as long as it is there."""
    optimizer: Any = isostep.keras.SGD(0.5)
    matrix = keras.Variable(np.ones(SHAPE), dtype="float32")
    gradients = [keras.ops.ones(SHAPE)]
    optimizer.apply(gradients, [matrix])
    before = np.array(keras.ops.convert_to_numpy(matrix))
    optimizer._clip_gradients = lambda grads: [g * 0.0 for g in grads]
    optimizer.apply(gradients, [matrix])
    kept = np.array_equal(before, keras.ops.convert_to_numpy(matrix))
    del optimizer._clip_gradients
    optimizer.apply(gradients, [matrix])
    return [kept, not np.array_equal(before, keras.ops.convert_to_numpy(matrix))]


def look() -> dict[str, Any]:
    points = get("keras").extension_points
    known = {**methods(keras.optimizers.Adam), **methods(keras.optimizers.Adafactor)}
    found: dict[str, Any] = {}
    for name in known:
        found[f"{name} recorded"] = ends(name, "")
        if name in points and name not in KEPT:
            change = "halved" if name in HALVED else "left out"
            found[f"{name} {change}"] = ends(name, change)
    plain = [
        train(getattr(keras.optimizers, rule)(**options))
        for rule, options in (*CASES.values(), USUAL)
    ]
    return {
        "found": found,
        "plain": plain,
        "unknown": sorted({*points} - {*known}),
        "refused": refused(),
        "on the object": on_the_object(),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(look()))
