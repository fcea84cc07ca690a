"""An exception at any place of a step leaves it done or not begun."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.nn import ClipGradByGlobalNorm

import isostep.paddle
from tests.fuzzing import runs
from tests.interruptions import Struck, Training, by_exception, check, instructions

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "one pass": ("AdamW", {"amsgrad": True}),
    "no slots": ("SGD", {"learning_rate": 0.125}),
    "factors": ("Adafactor", {"weight_decay": 0.125}),
    "a global norm and averages": (
        "Momentum",
        {"grad_clip": ClipGradByGlobalNorm(0.5), "ema": 0.9},
    ),
    "masters": ("AdamW", {"multi_precision": True}),
    "skipped steps": ("Adam", {"nonfinite": "skip"}),
    "rows": ("Adam", {"lazy_mode": True}),
    "array code": ("AdamW", {"engine": "array"}),
    "array code with averages": ("SGD", {"engine": "array", "ema": 0.9}),
}
PLACES = runs(30, cost=10)


def training(name: str) -> Training:
    rule, options = OPTIONS[name]
    paddle.seed(0)
    dtype = "bfloat16" if "multi_precision" in options else "float32"
    with paddle.utils.unique_name.guard():
        params = [_parameter(shape, dtype) for shape in ([6, 5], [5], [4, 3])]
        layer = paddle.nn.Embedding(7, 3, sparse=name == "rows")
        params.append(layer.weight)
        optimizer: Any = getattr(isostep.paddle, rule)(parameters=params, **options)

    def step(taken: int) -> None:
        paddle.seed(taken)
        for k, p in enumerate(params[:3]):
            p.grad = None if k == 1 and taken % 2 else paddle.randn(p.shape).astype(p.dtype)
        if name == "skipped steps" and taken == 1:
            params[0].grad[0, 0] = float("inf")
        layer.weight.clear_gradient(set_to_zero=False)
        (layer(paddle.to_tensor([1, 4, taken % 7])) ** 2).sum().backward()
        optimizer.step()

    def snapshot() -> dict[str, bytes]:
        steps = optimizer.steps()
        found = {p.name: _bytes(p) for p in params}
        for slot, held in optimizer._accumulators.items():
            for owner, tensor in held.items():
                of = next(p.name for p in params if owner.startswith(p.name))
                if of in steps:  # else as good as not there
                    found[f"{slot} of {of}"] = _bytes(tensor)
        for of, tensor in optimizer._master_weights.items():
            if of in steps:
                found[f"master of {of}"] = _bytes(tensor)
        counts = (sorted(steps.items()), optimizer.iteration, optimizer.skipped)
        return found | {"counts": repr(counts).encode()}

    return Training(step, snapshot)


def _parameter(shape: list[int], dtype: str) -> Any:
    start = paddle.nn.initializer.Assign(paddle.randn(shape).astype(dtype))
    attr = paddle.ParamAttr(initializer=start)
    return paddle.create_parameter(shape, dtype, attr=attr)


def _bytes(tensor: Any) -> bytes:
    return np.asarray(tensor.detach().astype("float64").numpy()).tobytes()


def test_an_exception_leaves_the_lock_to_other_threads() -> None:
    whole = training("one pass")
    for taken in range(3):
        whole.step(taken)
    length = instructions(lambda: whole.step(2), None, by_exception)
    for place in range(length - 100, length + 1):  # the lock is let go of at the end
        with contextlib.suppress(Struck, RuntimeError):
            instructions(lambda: whole.step(2), place, by_exception)
        thread = threading.Thread(target=whole.step, args=(2,), daemon=True)
        thread.start()
        thread.join(timeout=60)
        assert not thread.is_alive(), f"instruction {place}"


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_an_exception_leaves_a_step_done_or_not_begun(name: str, steps: int) -> None:
    check(lambda: training(name), steps, PLACES)
    assert paddle.is_grad_enabled()
