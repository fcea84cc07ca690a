"""Runs `paddle_cases` through Paddle: `python -m tests.parity.paddle_reference FILE`.

With `isostep.paddle` as a second argument its classes stand in the place of Paddle's own; a third
is the engine that they are given.
"""

from __future__ import annotations

import importlib
import sys
from functools import partial
from typing import Any

import numpy as np
import paddle

from .case import Array, Case, State, defaults, record
from .paddle_cases import CASES, EVERY_DTYPE

_CLIPS = {
    "value": paddle.nn.ClipGradByValue,
    "norm": paddle.nn.ClipGradByNorm,
    "global_norm": paddle.nn.ClipGradByGlobalNorm,
}


class PaddleRunner:
    def __init__(
        self,
        case: Case,
        parameters: dict[str, Array],
        dtype: str,
        classes: Any = paddle.optimizer,
        **options: Any,
    ) -> None:
        paddle.set_default_dtype(dtype)
        self.parameters = {
            name: paddle.create_parameter(
                list(array.shape),
                dtype,
                default_initializer=paddle.nn.initializer.Assign(array),
            )
            for name, array in parameters.items()
        }
        self.optimizer = getattr(classes, case.framework_class)(
            parameters=list(self.parameters.values()),
            grad_clip=_CLIPS[case.clip[0]](case.clip[1]) if case.clip else None,
            **case.arguments,
            **options,
        )

    def step(self, gradients: dict[str, Array | None]) -> None:
        self.optimizer.clear_grad(set_to_zero=False)
        for name, gradient in gradients.items():
            if gradient is not None:
                self.parameters[name].grad = paddle.to_tensor(gradient)
        self.optimizer.step()

    def state(self) -> State:
        found: State = {name: {"param": p.numpy()} for name, p in self.parameters.items()}
        for slot, tensors in self.optimizer._accumulators.items():
            for name, parameter in self.parameters.items():
                if parameter.name in tensors:
                    found[name][slot] = tensors[parameter.name].numpy()
        return found


def probes() -> dict[str, Array]:
    """What the tests of single facts look at."""
    return {
        "defaults": defaults(
            {
                case.framework_class: getattr(paddle.optimizer, case.framework_class)
                for case in CASES
            }
        ),
        "clips-float64-by-norm": np.array(_clips_float64_by_norm()),
        "takes-lr-ratio": np.array(_takes_lr_ratio()),
        "momentum-rescaled": _moved("Momentum", rescale_grad=0.5),
        "groups-clipped": _moved("SGD", grad_clip=paddle.nn.ClipGradByGlobalNorm(1.0)),
        "tensor-betas": _moved(
            "Adam", beta1=paddle.to_tensor([0.5]), beta2=paddle.to_tensor([0.75]), epsilon=0.0
        ),
        "sparse-adam": _moved("Adam", sparse=True, beta1=0.75, beta2=0.9375, epsilon=0.0),
    }


def _takes_lr_ratio() -> bool:
    try:
        paddle.optimizer.AdamW(parameters=[paddle.ones([1])], lr_ratio=lambda p: 0.5)
    except NotImplementedError:
        return False
    return True


def _moved(name: str, sparse: bool = False, **options: Any) -> Array:
    """How far each of two groups of one element moves at rate 1 with a gradient of 1."""
    layers = [paddle.nn.Embedding(1, 1, sparse=sparse) for _ in range(2)]
    groups = [{"params": layer.parameters()} for layer in layers]
    before = [layer.weight.numpy() for layer in layers]
    optimizer = getattr(paddle.optimizer, name)(learning_rate=1.0, parameters=groups, **options)
    for layer in layers:
        layer(paddle.zeros([1], "int64")).sum().backward()
    optimizer.step()
    pairs = zip(before, layers, strict=True)
    return np.ravel([b - layer.weight.numpy() for b, layer in pairs])


def _clips_float64_by_norm() -> bool:
    gradient = paddle.to_tensor(np.ones(1))
    try:
        paddle.nn.ClipGradByNorm(1.0)([(gradient, gradient)])
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    paddle.set_device("cpu")
    if len(sys.argv) > 2:
        classes = importlib.import_module(sys.argv[2])
        ours = partial(PaddleRunner, classes=classes, engine=sys.argv[3])
        record(sys.argv[1], CASES + EVERY_DTYPE, ours, dtypes=("float64",))
    else:
        record(sys.argv[1], CASES, PaddleRunner, probes)
