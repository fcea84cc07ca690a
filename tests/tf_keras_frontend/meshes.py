"""Steps on meshes: `python -m tests.tf_keras_frontend.meshes AXES COMPILED` prints one JSON object.

Each rule, with each option alone, steps variables of ranks 0 to 4 in every placement on a mesh, all
of them in one optimizer: programs of a mesh take long to make. AXES is the number of its axes;
COMPILED are the options, with commas between them, whose steps run inside tf.function as well, or
`all`. More arguments choose rules.
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow.experimental import dtensor

import isostep.tf_keras
from tests.keras_rules import RULES

SHAPE = (2, 4, 2, 6)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipnorm": {"clipnorm": 0.5},
    "global_clipnorm": {"global_clipnorm": 2.0},
    "clipvalue": {"clipvalue": 0.5},
    "average": {"use_ema": True, "ema_momentum": 0.75, "ema_overwrite_frequency": None},
    "overwriting": {"use_ema": True, "ema_momentum": 0.75, "ema_overwrite_frequency": 2},
    "decay": {"weight_decay": 0.0625},
    "loss scale": {"nonfinite": "skip"},
}
STEPS = 3
SCALE = 8.0


def placements(rank: int, axes: Sequence[str]) -> list[list[str]]:
    """Every way to lay the axes of an array along those of a mesh."""
    found: list[list[str]] = []
    for places in itertools.product((None, *range(rank)), repeat=len(axes)):
        taken = [p for p in places if p is not None]
        if len(set(taken)) == len(taken):
            specs = ["unsharded"] * rank
            for axis, place in zip(axes, places, strict=True):
                if place is not None:
                    specs[place] = axis
            found.append(specs)
    return found


class Table:
    """All variables and gradients, on a mesh and on one device."""

    def __init__(self, axes: Sequence[str]) -> None:
        devices = [f"CPU:{k}" for k in range(2 ** len(axes))]
        self.mesh = dtensor.create_mesh([(axis, 2) for axis in axes], devices=devices)
        self.specs = [s for rank in range(5) for s in placements(rank, axes)]
        random = np.random.default_rng(0)
        self.start, *grads = (
            [random.normal(size=SHAPE[: len(s)]) for s in self.specs] for _ in range(STEPS + 1)
        )
        self.grads = grads
        self.meshed = [self._each(values) for values in grads]

    def variables(self, on_mesh: bool) -> list[Any]:
        if not on_mesh:
            return [tf.Variable(x) for x in self.start]
        return [dtensor.DVariable(x) for x in self._each(self.start)]

    def given(self, on_mesh: bool, step: int) -> list[Any]:
        return self.meshed[step] if on_mesh else [tf.constant(g) for g in self.grads[step]]

    def whole(self, variable: Any) -> Any:
        layout = dtensor.Layout.replicated(self.mesh, rank=len(variable.shape))
        return np.array(dtensor.relayout(variable.read_value(), layout))

    def _each(self, values: Sequence[Any]) -> list[Any]:
        return [self._laid(x, s) for x, s in zip(values, self.specs, strict=True)]

    def _laid(self, value: Any, specs: list[str]) -> Any:
        replicated = dtensor.Layout.replicated(self.mesh, rank=value.ndim)
        whole = dtensor.copy_to_mesh(tf.constant(value), replicated)
        return dtensor.relayout(whole, dtensor.Layout(specs, self.mesh))


def run(table: Table, rule: str, option: str, on_mesh: bool, compiled: bool) -> list[Any]:
    """The variables after some steps; with a loss scale the second step has an infinity.

    The scale is fixed: inside tf.function every device of a mesh halves tf_keras' dynamic one.
    """
    where = {"mesh": table.mesh} if on_mesh else {}
    given = {"ema_overwrite_frequency": None, **RULES[rule], **OPTIONS[option], **where}
    optimizer: Any = getattr(isostep.tf_keras, rule)(**given)
    scales = option == "loss scale"
    if scales:
        wrapped = tf_keras.mixed_precision.LossScaleOptimizer
        optimizer = wrapped(optimizer, dynamic=False, initial_scale=SCALE)
    variables = table.variables(on_mesh)

    def step(grads: list[Any]) -> None:
        if scales:
            grads = optimizer.get_unscaled_gradients(grads)
        optimizer.apply_gradients(list(zip(grads, variables, strict=True)))

    act = tf.function(step) if compiled else step
    for k in range(STEPS):
        grads = table.given(on_mesh, k)
        if scales:
            factor = np.inf if k == 1 else SCALE
            grads = [g * factor for g in grads]
        act(grads)
    return [table.whole(v) if on_mesh else v.numpy() for v in variables]


def compare(axes: Sequence[str], compiled: Sequence[str], rules: Sequence[str]) -> dict[str, Any]:
    """The largest distance by rule, option and kind of step; and the number of cases."""
    table = Table(axes)
    found: dict[str, float] = {}
    moved = np.inf
    for rule, option in itertools.product(rules, OPTIONS):
        alone = run(table, rule, option, on_mesh=False, compiled=True)
        scale = [np.max(np.abs(x)) + 1e-30 for x in alone]
        moves = [np.max(np.abs(x - s)) for x, s in zip(alone, table.start, strict=True)]
        moved = min(moved, float(min(moves)))
        for inside in (False, True)[: 1 + (option in compiled)]:
            laid = run(table, rule, option, on_mesh=True, compiled=inside)
            apart = [np.max(np.abs(x - y)) / s for x, y, s in zip(alone, laid, scale, strict=True)]
            kind = "tf.function" if inside else "eager"
            found[f"{rule}, {option}, {kind}"] = float(np.max(apart))
    return {"found": found, "cases": len(found) * len(table.specs), "moved": moved}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable()
    device = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 4)
    # What grappler gains in three steps it loses many times over in the making of programs.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    tf_keras.backend.set_floatx("float64")
    number, compiled, *chosen = sys.argv[1:]
    inside = list(OPTIONS) if compiled == "all" else compiled.split(",")
    print(json.dumps(compare("xy"[: int(number)], inside, chosen or list(RULES))))
