"""Two optimizers, Paddle's and isostep's, over equal parameters and the same gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import paddle

import isostep.paddle

RULES: dict[str, dict[str, Any]] = {
    "SGD": {"learning_rate": 0.125, "weight_decay": 0.0625},
    "Momentum": {"learning_rate": 0.125, "momentum": 0.75, "use_nesterov": True},
    "Adagrad": {"learning_rate": 0.25, "epsilon": 0.0078125, "initial_accumulator_value": 0.25},
    "RMSProp": {
        "learning_rate": 0.0625,
        "rho": 0.75,
        "momentum": 0.5,
        "centered": True,
        "epsilon": 0.0078125,
    },
    "Adadelta": {"learning_rate": 0.5, "rho": 0.75, "epsilon": 0.0078125, "weight_decay": 0.0625},
    "Adam": {"learning_rate": 0.0625, "beta1": 0.75, "beta2": 0.9375, "weight_decay": 0.0625},
    "AdamW": {
        "learning_rate": 0.0625,
        "beta1": 0.75,
        "beta2": 0.9375,
        "amsgrad": True,
        "weight_decay": 0.25,
    },
}
"""Hyperparameters off their neutral values, and exact in float32, in which Paddle keeps them."""

SHAPES = ((4, 5), (5,), (5, 3), (3,))
ADAFACTOR = {"learning_rate": 0.0625, "weight_decay": 0.0625, "epsilon2": 0.0078125}
OURS = RULES | {"Adafactor": ADAFACTOR}


def parameters(dtype: str = "float64", **attributes: Any) -> list[Any]:
    """Fresh parameters, always the same; `attributes` are those of the second."""
    random = np.random.default_rng(0)
    made: list[Any] = []
    for k, shape in enumerate(SHAPES):
        values = random.normal(size=shape)
        start = paddle.nn.initializer.Assign(values.astype("float32"))
        attr = paddle.ParamAttr(initializer=start, **(attributes if k == 1 else {}))
        made.append(paddle.create_parameter(list(shape), "float32", attr=attr))
        if dtype != "float32":
            made[-1] = _cast(made[-1], dtype, attr, values)
    return made


def _cast(param: Any, dtype: str, attr: Any, values: Any) -> Any:
    start = paddle.nn.initializer.Assign(paddle.to_tensor(values).astype(dtype))
    attr.initializer = start
    return paddle.create_parameter(param.shape, dtype, attr=attr)


def gradients(step: int, dtype: str = "float64") -> list[Any]:
    """The gradients of one step."""
    random = np.random.default_rng([1, step])
    return [paddle.to_tensor(random.normal(size=shape)).astype(dtype) for shape in SHAPES]


def take(optimizer: Any, params: Sequence[Any], steps: range, dtype: str = "float64") -> None:
    """Some steps."""
    for step in steps:
        optimizer.clear_grad(set_to_zero=False)
        for param, gradient in zip(params, gradients(step, dtype), strict=True):
            param.grad = gradient
        optimizer.step()


def trained(
    classes: Any,
    name: str,
    steps: int = 12,
    dtype: str = "float64",
    attributes: dict[str, Any] | None = None,
    groups: Callable[[list[Any]], Any] = lambda params: params,
    **options: Any,
) -> tuple[list[Any], Any]:
    """Parameters after some steps, and their optimizer.

    Args:
        classes: `paddle.optimizer` or `isostep.paddle`.
        name: the class.
        steps: how many.
        dtype: of parameters and gradients.
        attributes: of the second parameter.
        groups: what `parameters` is made of them.
        **options: arguments of the class.
    """
    with paddle.utils.unique_name.guard():
        params = parameters(dtype, **(attributes or {}))
        optimizer = getattr(classes, name)(parameters=groups(params), **options)
        take(optimizer, params, range(steps), dtype)
    return params, optimizer


def apart(one: Sequence[Any], other: Sequence[Any]) -> float:
    """The largest relative distance between two lists of tensors."""
    found = 0.0
    for a, b in zip(one, other, strict=True):
        x, y = (np.asarray(t.astype("float64").numpy()) for t in (a, b))
        found = max(found, float(np.max(np.abs(x - y)) / (np.max(np.abs(x)) + 1e-30)))
    return found


def both(name: str, **how: Any) -> float:
    """How far isostep's parameters are from Paddle's after the same training."""
    theirs, _ = trained(paddle.optimizer, name, **how)
    ours, optimizer = trained(isostep.paddle, name, **how)
    assert all(kernel.startswith("native") for kernel in optimizer.ran), optimizer.ran
    return apart(theirs, ours)
