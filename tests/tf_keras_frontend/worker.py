"""What is looked at in a process with TensorFlow: `python -m tests.tf_keras_frontend.worker NAME`.

Prints one JSON object. Four logical CPU devices are there.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow.experimental import dtensor

import isostep.tf_keras

RULES: dict[str, dict[str, Any]] = {
    "SGD": {"learning_rate": 0.0625, "momentum": 0.75, "nesterov": True},
    "Adagrad": {"learning_rate": 0.25, "initial_accumulator_value": 0.25, "epsilon": 1e-3},
    "RMSprop": {"learning_rate": 0.0625, "rho": 0.75, "momentum": 0.5, "centered": True},
    "Adadelta": {"learning_rate": 0.5, "rho": 0.75, "epsilon": 1e-3},
    "Adam": {"learning_rate": 0.0625, "beta_1": 0.75, "beta_2": 0.9375, "amsgrad": True},
    "AdamW": {
        "learning_rate": 0.0625,
        "beta_1": 0.75,
        "beta_2": 0.9375,
        "epsilon": 2**-10,
        "weight_decay": 0.125,
    },
    "Adafactor": {"learning_rate": 0.25, "clip_threshold": 0.75, "epsilon_1": 1e-4},
}
SHAPES = [(), (4,), (4, 6), (2, 4, 6)]
EVERYTHING: dict[str, Any] = {
    "weight_decay": 0.0625,
    "global_clipnorm": 2.0,
    "use_ema": True,
    "ema_momentum": 0.75,
    "ema_overwrite_frequency": 4,
}


def drawn(seed: int) -> list[Any]:
    random = np.random.default_rng(seed)
    return [random.normal(size=shape) for shape in SHAPES]


def worst(a: list[Any], b: list[Any]) -> float:
    return max(
        float(np.max(np.abs(x - y) / (np.abs(x).max() + 1e-30)))
        for x, y in zip(a, b, strict=True)
        if np.size(x)
    )


def values(variables: list[Any]) -> list[Any]:
    return [np.array(v, dtype=np.float64) for v in variables]


def fill(seed: int) -> list[Any]:
    return [tf.Variable(x, name=f"v{k}") for k, x in enumerate(drawn(seed))]


def run(optimizer: Any, variables: list[Any], steps: int = 9, compiled: bool = True) -> list[Any]:
    def step(grads: list[Any]) -> None:
        optimizer.apply_gradients(list(zip(grads, variables, strict=True)))

    act = tf.function(step) if compiled else step
    for k in range(steps):
        act([tf.constant(g) for g in drawn(100 + k)])
    return values(variables)


# -- a mesh --------------------------------------------------------------------------------------

SPECS: list[list[str]] = [[], ["x"], ["x", "y"], ["unsharded", "x", "y"]]


def meshed(value: Any, specs: list[str], mesh: Any) -> Any:
    whole = dtensor.copy_to_mesh(
        tf.constant(value), dtensor.Layout.replicated(mesh, np.ndim(value))
    )
    return dtensor.relayout(whole, dtensor.Layout(specs, mesh))


def gathered(variable: Any) -> Any:
    layout = dtensor.Layout.replicated(variable.layout.mesh, len(variable.shape))
    return np.array(dtensor.relayout(variable.read_value(), layout))


def mesh() -> dict[str, Any]:
    """Every rule with everything on, on a mesh and without: distance, and layouts of the slots."""
    grid = dtensor.create_mesh([("x", 2), ("y", 2)], devices=[f"CPU:{i}" for i in range(4)])
    found: dict[str, Any] = {}
    for rule, given in RULES.items():
        made = getattr(isostep.tf_keras, rule)
        alone = run(made(**{**given, **EVERYTHING}), fill(0))
        laid = [
            dtensor.DVariable(meshed(x, specs, grid), name=f"v{k}")
            for k, (x, specs) in enumerate(zip(drawn(0), SPECS, strict=True))
        ]
        optimizer = made(**{**given, **EVERYTHING}, mesh=grid, report=True)

        @tf.function
        def step(grads: list[Any], optimizer: Any = optimizer, laid: list[Any] = laid) -> None:
            optimizer.apply_gradients(list(zip(grads, laid, strict=True)))

        for k in range(9):
            step([meshed(g, s, grid) for g, s in zip(drawn(100 + k), SPECS, strict=True)])
        layouts = {v.name.removesuffix(":0"): v.layout.sharding_specs for v in optimizer.variables}
        found[rule] = [worst(alone, [gathered(v) for v in laid]), layouts]
    return found


LOOKS: dict[str, Callable[[], Any]] = {f.__name__: f for f in (mesh,)}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    tf_keras.backend.set_floatx("float64")
    device = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 4)
    print(json.dumps(LOOKS[sys.argv[1]]()))
