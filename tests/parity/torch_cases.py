"""The cases of `torch.optim`: every rule with its flags, clipping and averaging."""

from __future__ import annotations

from .case import RANKS, Average, Case

_FACTORED = ("flat", "lanes", "rows")
_SGD = {"lr": 0.03, "weight_decay": 0.07}
_ADAGRAD = {"lr": 0.3, "eps": 1e-3, "weight_decay": 0.07}
_RMSPROP = {"lr": 0.02, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.07}
_ADAM = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.07}
_ADAFACTOR = {
    "lr": 0.3,
    "beta2_decay": -0.7,
    "eps": (1e-3, 0.2),
    "d": 1.3,
    "weight_decay": 0.07,
}


def _late(step: int) -> bool:
    return step <= 4


def _now_and_then(step: int) -> bool:
    return step % 3 == 0


_GAPS = {"vector": _late, "cube": _now_and_then}

CASES = [
    Case("sgd", "SGD", _SGD, shapes=RANKS),
    Case("sgd-momentum", "SGD", _SGD | {"momentum": 0.8}),
    Case("sgd-dampening", "SGD", _SGD | {"momentum": 0.8, "dampening": 0.3}, shapes=RANKS),
    Case("sgd-nesterov", "SGD", _SGD | {"momentum": 0.8, "nesterov": True}),
    Case("sgd-maximize", "SGD", _SGD | {"momentum": 0.8, "dampening": 0.3}, maximize=True),
    Case("sgd-no-decay", "SGD", {"lr": 0.03, "momentum": 0.8}),
    Case("adagrad", "Adagrad", _ADAGRAD, shapes=RANKS),
    Case("adagrad-lr-decay", "Adagrad", _ADAGRAD | {"lr_decay": 0.05}),
    Case(
        "adagrad-initial-sum",
        "Adagrad",
        _ADAGRAD | {"lr_decay": 0.05, "initial_accumulator_value": 0.3},
    ),
    Case("adagrad-maximize", "Adagrad", _ADAGRAD | {"lr_decay": 0.05}, maximize=True),
    Case("rmsprop", "RMSprop", _RMSPROP, shapes=RANKS),
    Case("rmsprop-momentum", "RMSprop", _RMSPROP | {"momentum": 0.8}),
    Case("rmsprop-centered", "RMSprop", _RMSPROP | {"centered": True}),
    Case("rmsprop-centered-momentum", "RMSprop", _RMSPROP | {"centered": True, "momentum": 0.8}),
    Case(
        "rmsprop-maximize",
        "RMSprop",
        _RMSPROP | {"centered": True, "momentum": 0.8},
        maximize=True,
    ),
    Case(
        "adadelta",
        "Adadelta",
        {"lr": 0.7, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.07},
        shapes=RANKS,
    ),
    Case(
        "adadelta-maximize",
        "Adadelta",
        {"lr": 0.7, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.07},
        maximize=True,
    ),
    Case("adam", "Adam", _ADAM, shapes=RANKS),
    Case("adam-amsgrad", "Adam", _ADAM | {"amsgrad": True}),
    Case("adam-no-decay", "Adam", {k: v for k, v in _ADAM.items() if k != "weight_decay"}),
    Case("adam-slow-betas", "Adam", _ADAM | {"betas": (0.99, 0.9999)}),
    Case("adam-beta1-zero", "Adam", _ADAM | {"betas": (0.0, 0.95)}),
    Case("adam-maximize", "Adam", _ADAM | {"amsgrad": True}, maximize=True),
    Case("adamw", "AdamW", _ADAM, shapes=RANKS),
    Case("adamw-amsgrad", "AdamW", _ADAM | {"amsgrad": True}),
    Case("adamw-maximize", "AdamW", _ADAM, maximize=True),
    Case("adafactor", "Adafactor", _ADAFACTOR, shapes=RANKS, kernels=_FACTORED),
    Case(
        "adafactor-eps1-none",
        "Adafactor",
        _ADAFACTOR | {"eps": (None, 0.2)},
        shapes=RANKS,
        kernels=_FACTORED,
    ),
    Case("adafactor-maximize", "Adafactor", _ADAFACTOR, maximize=True, kernels=("flat", "rows")),
    Case("clip-value-sgd", "SGD", _SGD | {"momentum": 0.8}, clip=("value", 0.4)),
    Case("clip-norm-sgd", "SGD", _SGD | {"momentum": 0.8}, clip=("norm", 1.5)),
    Case("clip-global-norm-sgd", "SGD", _SGD | {"momentum": 0.8}, clip=("global_norm", 5.0)),
    Case("clip-global-norm-adamw", "AdamW", _ADAM, shapes=RANKS, clip=("global_norm", 20.0)),
    Case(
        "clip-global-norm-adafactor",
        "Adafactor",
        _ADAFACTOR,
        clip=("global_norm", 5.0),
        kernels=("flat", "rows"),
    ),
    Case(
        "clip-global-norm-maximize",
        "AdamW",
        _ADAM,
        clip=("global_norm", 5.0),
        maximize=True,
    ),
    *[
        Case(f"{value}-{kind}", "SGD", {"lr": 0.03}, clip=(kind, 5.0), poison=value)
        for kind in ("value", "norm", "global_norm")
        for value in (float("inf"), float("nan"))
    ],
    Case("average-sgd", "SGD", _SGD | {"momentum": 0.8}, average=Average(0.9)),
    Case("average-adamw", "AdamW", _ADAM, shapes=RANKS, average=Average(0.9)),
    Case(
        "average-clip-adamw",
        "AdamW",
        _ADAM,
        average=Average(0.9),
        clip=("global_norm", 5.0),
    ),
    Case(
        "gaps-sgd",
        "SGD",
        _SGD | {"momentum": 0.8, "dampening": 0.3},
        without_gradient=_GAPS,
    ),
    Case("gaps-adagrad", "Adagrad", _ADAGRAD | {"lr_decay": 0.05}, without_gradient=_GAPS),
    Case("gaps-rmsprop", "RMSprop", _RMSPROP | {"momentum": 0.8}, without_gradient=_GAPS),
    Case("gaps-adamw", "AdamW", _ADAM, without_gradient=_GAPS),
    Case(
        "gaps-adafactor",
        "Adafactor",
        _ADAFACTOR,
        without_gradient=_GAPS,
        kernels=("flat", "rows"),
    ),
    Case(
        "gaps-clip-adam",
        "Adam",
        _ADAM,
        without_gradient=_GAPS,
        clip=("global_norm", 5.0),
    ),
    Case(
        "gaps-average-adamw",
        "AdamW",
        _ADAM,
        without_gradient=_GAPS,
        average=Average(0.9),
    ),
]
