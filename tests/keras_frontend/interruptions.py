"""Run as a process on a backend of Keras: an exception at any place of a step."""

from __future__ import annotations

import json
import sys
from typing import Any

import keras
import numpy as np

import isostep.keras
from tests.fuzzing import runs
from tests.interruptions import Training, check

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "one pass": ("AdamW", {"weight_decay": 0.1, "amsgrad": True}),
    "a global norm and averages": (
        "Adam",
        {"global_clipnorm": 0.5, "use_ema": True, "ema_overwrite_frequency": 2},
    ),
    "factors": ("Adafactor", {"learning_rate": 0.1}),
    "several gradients to a step": (
        "SGD",
        {"momentum": 0.9, "gradient_accumulation_steps": 2, "use_ema": True},
    ),
}
ON_KERNELS = keras.backend.backend() == "torch"
PLACES = runs(40, cost=10) if ON_KERNELS else runs(10, cost=40)  # eager array code is slow


def training(rule: str, options: dict[str, Any]) -> Training:
    chance = np.random.default_rng(0)
    shapes = ((6, 5), (7,))
    constraint = keras.constraints.MaxNorm(1.5)
    variables = [
        keras.Variable(chance.normal(size=s).astype("float32"), name=f"v{k}")
        for k, s in enumerate(shapes)
    ]
    variables[0].constraint = constraint
    optimizer: Any = getattr(isostep.keras, rule)(**options)
    optimizer.build(variables)

    def step(taken: int) -> None:
        chance = np.random.default_rng(taken)
        optimizer.apply(
            [keras.ops.convert_to_tensor(chance.normal(size=s).astype("float32")) for s in shapes],
            variables,
        )

    def snapshot() -> dict[str, bytes]:
        kept = {f"{k} {v.name}": v for k, v in enumerate([*variables, *optimizer.variables])}
        return {name: keras.ops.convert_to_numpy(v).tobytes() for name, v in kept.items()}

    return Training(step, snapshot)


if __name__ == "__main__":
    for rule, options in OPTIONS.values():
        for steps in (0, 1, 2):
            check(lambda rule=rule, options=options: training(rule, options), steps, PLACES)
    print(json.dumps(list(OPTIONS)), file=sys.stdout)
