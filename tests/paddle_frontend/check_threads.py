"""Python threads that step one optimizer take turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
import pytest

import isostep.paddle
from tests.turns import at_once

from .worlds import OWN

STEPS, WORKERS = 20, 3
SHAPES = [[300, 200]] * 3 + [[7]] * 17


def made(rule: str, **options: Any) -> tuple[list[Any], Any]:
    with paddle.utils.unique_name.guard():
        ones = paddle.nn.initializer.Constant(1.0)
        params: list[Any] = [
            paddle.create_parameter(shape, "float32", default_initializer=ones) for shape in SHAPES
        ]
    for p in params:
        p.grad = paddle.full(p.shape, 0.25)
    return params, getattr(isostep.paddle, rule)(0.5, parameters=params, **options)


def powers_of_no_count(optimizer: Any) -> None:
    for power in optimizer._accumulators["beta1_pow_acc"].values():
        power.set_value(paddle.full([1], 0.65))


CASES: dict[str, tuple[str, dict[str, Any], Callable[[Any], None] | None]] = {
    "kernels": ("AdamW", {"beta1": 0.5, "beta2": 0.75}, None),
    "two passes": ("Momentum", {"grad_clip": paddle.nn.ClipGradByGlobalNorm(0.5)}, None),
    "array code": ("AdamW", {"beta1": 0.5, "beta2": 0.75, "engine": "array"}, None),
    "Paddle's own step": ("Adam", {}, powers_of_no_count),
}


@pytest.mark.parametrize("case", CASES)
def test_threads_that_step_one_optimizer_take_turns(case: str) -> None:
    rule, options, edit = CASES[case]
    params, optimizer = made(rule, **options)
    alone, twin = made(rule, **options)
    if edit is not None:
        for each in (optimizer, twin):
            each.step()
            edit(each)

    def look() -> None:
        assert len(set(optimizer.steps().values())) <= 1  # counts are those of whole steps
        optimizer.state_dict()

    at_once(optimizer.step, look, STEPS, WORKERS)
    for _ in range(STEPS * WORKERS):
        twin.step()
    assert optimizer.ran == twin.ran
    assert (optimizer.ran == OWN) == (edit is not None)
    assert optimizer.steps() == twin.steps()
    for p, q in zip(params, alone, strict=True):
        assert np.array_equal(p.numpy(), q.numpy())
    for name, held in twin._accumulators.items():
        for param, tensor in held.items():
            assert np.array_equal(optimizer._accumulators[name][param].numpy(), tensor.numpy())
