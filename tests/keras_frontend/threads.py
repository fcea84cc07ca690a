"""Run as a process on Keras' torch backend: Python threads that step one optimizer take turns."""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np

import isostep.keras
from tests.turns import at_once

STEPS, WORKERS = 20, 3
SHAPES = [(300, 200)] * 3 + [(7,)] * 17
OPTIONS: dict[str, dict[str, Any]] = {
    "kernels": {},
    "two passes": {"global_clipnorm": 0.5},
    "averages": {"use_ema": True, "ema_overwrite_frequency": 7},
    "several gradients to a step": {"gradient_accumulation_steps": 2},
}


def made(**options: Any) -> tuple[list[Any], Any]:
    variables = [
        keras.Variable(np.ones(shape, "float32"), name=f"v{k}") for k, shape in enumerate(SHAPES)
    ]
    optimizer: Any = isostep.keras.AdamW(0.5, beta_1=0.5, beta_2=0.75, **options)
    optimizer.build(variables)
    return variables, optimizer


def check(**options: Any) -> None:
    variables, optimizer = made(**options)
    alone, twin = made(**options)
    grads = [keras.ops.full(v.shape, 0.25) for v in variables]
    at_once(
        lambda: optimizer.apply(grads, variables), lambda: optimizer.get_config(), STEPS, WORKERS
    )
    for _ in range(STEPS * WORKERS):
        twin.apply(grads, alone)
    pairs = zip([*variables, *optimizer.variables], [*alone, *twin.variables], strict=True)
    for mine, due in pairs:
        one, other = (keras.ops.convert_to_numpy(v) for v in (mine, due))
        assert np.array_equal(one, other), (mine.path, one, other)


if __name__ == "__main__":
    for options in OPTIONS.values():
        check(**options)
    print(json.dumps(list(OPTIONS)))
