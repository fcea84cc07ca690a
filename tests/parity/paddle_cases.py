"""The cases of `paddle.optimizer`: every rule with its flags and clipping."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .case import DTYPES, FEW, RANKS, Case, Shapes

_SGD = {"learning_rate": 0.03, "weight_decay": 0.07}
_ADAGRAD = {"learning_rate": 0.3, "epsilon": 1e-3, "weight_decay": 0.07}
_RMSPROP = {"learning_rate": 0.02, "rho": 0.9, "epsilon": 1e-3, "weight_decay": 0.07}
_ADADELTA = {"learning_rate": 0.7, "rho": 0.8, "epsilon": 1e-3, "weight_decay": 0.07}
_ADAM = {
    "learning_rate": 0.03,
    "beta1": 0.8,
    "beta2": 0.95,
    "epsilon": 1e-3,
    "weight_decay": 0.07,
}


def _late(step: int) -> bool:
    return step <= 4


def _now_and_then(step: int) -> bool:
    return step % 3 == 0


_GAPS = {"vector": _late, "cube": _now_and_then}


def _momentum(name: str, **more: Any) -> Case:
    arguments = _SGD | {"momentum": 0.8} | more.pop("arguments", {})
    return Case(name, "SGD", arguments, class_name="Momentum", **more)


def _rmsprop(name: str, shapes: Shapes = FEW, **more: Any) -> Case:
    return Case(name, "RMSprop", _RMSPROP | more, class_name="RMSProp", shapes=shapes)


CASES = [
    Case("sgd", "SGD", _SGD, shapes=RANKS),
    _momentum("momentum", shapes=RANKS),
    _momentum("momentum-nesterov", arguments={"use_nesterov": True}),
    Case("adagrad", "Adagrad", _ADAGRAD, shapes=RANKS),
    Case(
        "adagrad-initial-sum",
        "Adagrad",
        _ADAGRAD | {"initial_accumulator_value": 0.3},
    ),
    _rmsprop("rmsprop", RANKS),
    _rmsprop("rmsprop-momentum", momentum=0.8),
    _rmsprop("rmsprop-centered", centered=True),
    _rmsprop("rmsprop-centered-momentum", centered=True, momentum=0.8),
    Case(
        "adadelta",
        "Adadelta",
        _ADADELTA,
        shapes=RANKS,
    ),
    Case("adam", "Adam", _ADAM, shapes=RANKS),
    Case("adam-amsgrad", "Adam", _ADAM | {"amsgrad": True}),
    Case("adam-no-decay", "Adam", {k: v for k, v in _ADAM.items() if k != "weight_decay"}),
    Case("adam-slow-betas", "Adam", _ADAM | {"beta1": 0.99, "beta2": 0.9999}),
    Case("adamw", "AdamW", _ADAM, shapes=RANKS),
    Case("adamw-amsgrad", "AdamW", _ADAM | {"amsgrad": True}),
    _momentum("clip-value-momentum", clip=("value", 0.4)),
    # See the quirk paddle-clip-by-norm-takes-float32.
    _momentum("clip-norm-momentum", clip=("norm", 1.5), dtypes=("float32",)),
    _momentum("clip-global-norm-momentum", clip=("global_norm", 5.0)),
    Case("clip-global-norm-adamw", "AdamW", _ADAM, shapes=RANKS, clip=("global_norm", 20.0)),
    *[
        Case(
            f"{value}-{kind}",
            "SGD",
            {"learning_rate": 0.03},
            clip=(kind, 5.0),
            poison=value,
            dtypes=("float32",) if kind == "norm" else DTYPES,
        )
        for kind in ("value", "norm", "global_norm")
        for value in (float("inf"), float("nan"))
    ],
    _momentum("gaps-momentum", without_gradient=_GAPS),
    Case("gaps-adamw", "AdamW", _ADAM, without_gradient=_GAPS),
    Case("gaps-clip-adam", "Adam", _ADAM, without_gradient=_GAPS, clip=("global_norm", 5.0)),
]

EVERY_DTYPE = [
    replace(case, name=f"{case.name}-float64", dtypes=("float64",))
    for case in CASES
    if "float64" not in case.dtypes
]
"""The cases that Paddle has in float32 only."""
