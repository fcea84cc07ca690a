"""paddle.optimizer in dynamic mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import paddle

import isostep.paddle
from benchmarks.cases import EMA_MOMENTUM, GLOBAL_NORM, LEARNING_RATE, Case
from benchmarks.models import Floats
from benchmarks.peers import FRONT_ENDS
from benchmarks.timing import Contestant
from isostep.recipe import EMA

_CLASSES = {
    "SGD": "Momentum",
    "Adagrad": "Adagrad",
    "RMSprop": "RMSProp",
    "Adadelta": "Adadelta",
    "Adam": "Adam",
    "AdamW": "AdamW",
}


def contestants(case: Case, params: list[Floats], grads: list[Floats]) -> Iterator[Contestant]:
    """`optimizer.step()`; with several tensors in one call where the class can."""
    if case.rule not in _CLASSES:
        return
    yield Contestant("paddle", "paddle", _step(case, params, grads, {}))
    if case.rule in ("SGD", "Adam") and not case.composite:
        several = _step(case, params, grads, {"use_multi_tensor": True})
        yield Contestant("paddle multi-tensor", "paddle", several)


def front_end(case: Case, params: list[Floats], grads: list[Floats]) -> Contestant:
    """isostep's class in the place of Paddle's."""
    options: dict[str, Any] = {}
    if case.composite:
        options["grad_clip"] = paddle.nn.ClipGradByGlobalNorm(GLOBAL_NORM)
        options["ema"] = EMA(EMA_MOMENTUM, start="initial")
    optimizer = getattr(isostep.paddle, _CLASSES.get(case.rule, case.rule))(
        learning_rate=LEARNING_RATE[case.rule],
        parameters=[_parameter(p, g) for p, g in zip(params, grads, strict=True)],
        **case.hyperparameters,
        **options,
    )
    return Contestant(FRONT_ENDS["paddle"], FRONT_ENDS["paddle"], optimizer.step)


def _step(
    case: Case, params: list[Floats], grads: list[Floats], options: dict[str, Any]
) -> Callable[[], None]:
    tensors = [_parameter(p, g) for p, g in zip(params, grads, strict=True)]
    if case.composite:
        options = {**options, "grad_clip": paddle.nn.ClipGradByGlobalNorm(GLOBAL_NORM)}
    optimizer = getattr(paddle.optimizer, _CLASSES[case.rule])(
        learning_rate=LEARNING_RATE[case.rule],
        parameters=tensors,
        **case.hyperparameters,
        **options,
    )
    if not case.composite:
        return optimizer.step
    averages = [tensor.detach().clone() for tensor in tensors]

    def step() -> None:
        optimizer.step()
        with paddle.no_grad():
            for average, tensor in zip(averages, tensors, strict=True):
                average.lerp_(tensor, 1 - EMA_MOMENTUM)

    return step


def _parameter(array: Floats, gradient: Floats) -> Any:
    tensor = paddle.create_parameter(list(array.shape), "float32")
    tensor.set_value(array)
    tensor.grad = paddle.to_tensor(gradient)
    return tensor


def versions() -> dict[str, str]:
    """Paddle's version."""
    return {"paddle": paddle.__version__}
