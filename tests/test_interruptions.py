"""An exception at any place of a step leaves it done or not begun (NumPy front-end)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import isostep
from tests.fuzzing import runs
from tests.interruptions import Training, check

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "one pass": ("AdamW", {"weight_decay": 0.1}),
    "a global norm": ("AdamW", {"clip": isostep.Clip(global_norm=0.5)}),
    "factors": ("Adafactor", {"weight_decay": 0.1}),
    "averages": ("SGD", {"lr": 0.1, "momentum": 0.9, "ema": 0.9}),
    "idle averages": ("Adam", {"dialect": "keras", "ema": isostep.EMA(0.9, overwrite_every=2)}),
    "array code": ("AdamW", {"engine": "array", "clip": isostep.Clip(global_norm=0.5)}),
    "a skipped step": ("AdamW", {"nonfinite": "skip"}),
}
PLACES = runs(60)


def training(rule: str, options: dict[str, Any], poisoned: bool = False) -> Training:
    chance = np.random.default_rng(0)
    params = {
        "matrix": chance.normal(size=(6, 5)).astype(np.float32),
        "strided": chance.normal(size=(8, 6)).astype(np.float32)[::2].T,
        "vector": chance.normal(size=7),
    }
    optimizer = isostep.Optimizer(rule, params, **options)

    def step(taken: int) -> None:
        chance = np.random.default_rng(taken)
        grads: dict[str, Any] = {n: chance.normal(size=p.shape) for n, p in params.items()}
        if taken % 2:
            grads["vector"] = None
        if poisoned and taken % 2:
            grads["matrix"][0, 0] = np.inf
        optimizer.step(grads)

    def snapshot() -> dict[str, bytes]:
        state = optimizer.state_dict()
        found = {n: p.tobytes() for n, p in params.items()}
        for name, entry in state["parameters"].items():
            found[f"{name}.step"] = bytes(str(entry["step"]), "ascii")
            found |= {f"{name}.{slot}": a.tobytes() for slot, a in entry["slots"].items()}
        counts = f"{state['iteration']} {state['skipped']}"
        return found | {"counts": bytes(counts, "ascii")}

    return Training(step, snapshot)


@pytest.mark.fuzz
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_an_exception_leaves_a_step_done_or_not_begun(name: str, steps: int):
    rule, options = OPTIONS[name]
    check(lambda: training(rule, options, name == "a skipped step"), steps, PLACES)
