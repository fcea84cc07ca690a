"""The cases of Keras 3, most of which are those of tf_keras as well."""

from __future__ import annotations

from .case import RANKS, Average, Case, Shapes

_FACTORED = ("flat", "lanes", "rows")
# TensorFlow takes most of these through float32, which changes none of them.
SGD = {"learning_rate": 0.03, "weight_decay": 0.0625}
ADAGRAD = {
    "learning_rate": 0.3,
    "initial_accumulator_value": 0.25,
    "epsilon": 1e-3,
    "weight_decay": 0.0625,
}
RMSPROP = {"learning_rate": 0.02, "rho": 0.8, "epsilon": 1e-3, "weight_decay": 0.0625}
ADADELTA = {"learning_rate": 0.7, "rho": 0.8, "epsilon": 1e-3, "weight_decay": 0.0625}
ADAM = {
    "learning_rate": 0.03,
    "beta_1": 0.75,
    "beta_2": 0.9375,
    "epsilon": 1e-3,
    "weight_decay": 0.0625,
}
ADAFACTOR = {
    "learning_rate": 0.3,
    "beta_2_decay": -0.75,
    "epsilon_1": 1e-4,
    "epsilon_2": 0.1875,
    "clip_threshold": 0.8,
    "weight_decay": 0.0625,
}
TWO: Shapes = {"vector": (7,), "matrix": (6, 5)}


def _late(step: int) -> bool:
    return step <= 4


def _now_and_then(step: int) -> bool:
    return step % 3 == 0


_GAPS = {"vector": _late, "cube": _now_and_then}

EVERYWHERE = [
    Case("sgd", "SGD", SGD, shapes=RANKS),
    Case("adagrad", "Adagrad", ADAGRAD, shapes=RANKS),
    Case(
        "rmsprop-centered-momentum",
        "RMSprop",
        RMSPROP | {"centered": True, "momentum": 0.75},
        shapes=RANKS,
    ),
    Case("adadelta", "Adadelta", ADADELTA, shapes=RANKS),
    Case("adam-amsgrad", "Adam", ADAM | {"amsgrad": True}),
    Case("adamw", "AdamW", ADAM, shapes=RANKS),
    Case("adafactor", "Adafactor", ADAFACTOR, shapes=RANKS, kernels=_FACTORED),
    Case("sgd-nesterov", "SGD", SGD | {"momentum": 0.75, "nesterov": True}),
    Case("clip-norm-sgd", "SGD", SGD | {"momentum": 0.75}, clip=("norm", 1.5)),
    Case("clip-global-norm-sgd", "SGD", SGD | {"momentum": 0.75}, clip=("global_norm", 5.0)),
    Case("average-adamw", "AdamW", ADAM, average=Average(0.9, 3)),
]
"""The cases that every backend runs."""

CASES = [
    *EVERYWHERE,
    Case("sgd-momentum", "SGD", SGD | {"momentum": 0.75}),
    Case("sgd-no-decay", "SGD", {"learning_rate": 0.03, "momentum": 0.75}),
    Case("rmsprop", "RMSprop", RMSPROP),
    Case("rmsprop-momentum", "RMSprop", RMSPROP | {"momentum": 0.75}),
    Case("rmsprop-centered", "RMSprop", RMSPROP | {"centered": True}),
    Case("adam", "Adam", ADAM),
    Case("adam-slow-betas", "Adam", ADAM | {"beta_1": 1 - 2**-7, "beta_2": 1 - 2**-13}),
    Case("adamw-amsgrad", "AdamW", ADAM | {"amsgrad": True}),
    Case(
        "adafactor-not-relative",
        "Adafactor",
        ADAFACTOR | {"relative_step": False},
        shapes=TWO,
        kernels=("flat", "rows"),
    ),
    Case("clip-value-sgd", "SGD", SGD | {"momentum": 0.75}, clip=("value", 0.4)),
    Case("clip-norm-adam", "Adam", ADAM, clip=("norm", 1.5)),
    Case("clip-global-norm-adamw", "AdamW", ADAM, shapes=RANKS, clip=("global_norm", 20.0)),
    Case(
        "clip-global-norm-adafactor",
        "Adafactor",
        ADAFACTOR,
        shapes=TWO,
        kernels=("flat", "rows"),
        clip=("global_norm", 5.0),
    ),
    *[
        Case(f"{value}-{kind}", "SGD", {"learning_rate": 0.03}, clip=(kind, 5.0), poison=value)
        for kind in ("value", "norm", "global_norm")
        for value in (float("inf"), float("nan"))
    ],
    Case("average-sgd", "SGD", SGD | {"momentum": 0.75}, average=Average(0.9)),
    Case("average-sgd-overwrite", "SGD", SGD | {"momentum": 0.75}, average=Average(0.9, 3)),
    Case(
        "average-clip-adamw",
        "AdamW",
        ADAM,
        average=Average(0.9, 3),
        clip=("global_norm", 5.0),
    ),
    Case("gaps-sgd", "SGD", SGD | {"momentum": 0.75}, without_gradient=_GAPS),
    Case("gaps-adam", "Adam", ADAM, without_gradient=_GAPS),
    Case(
        "gaps-clip-adamw",
        "AdamW",
        ADAM,
        without_gradient=_GAPS,
        clip=("global_norm", 5.0),
    ),
    *[
        Case(
            f"rounded-{name}",
            rule,
            arguments,
            quirk="keras-casts-through-float32",
            tolerance=1e-6,
        )
        for name, rule, arguments in (
            ("sgd", "SGD", SGD | {"weight_decay": 0.07, "momentum": 0.8}),
            ("adagrad", "Adagrad", ADAGRAD | {"initial_accumulator_value": 0.3}),
            ("adam", "Adam", ADAM | {"beta_1": 0.8, "beta_2": 0.95}),
        )
    ],
    Case("gaps-average-sgd", "SGD", SGD, without_gradient=_GAPS, average=Average(0.9)),
    Case("gaps-average-adam", "Adam", ADAM, without_gradient=_GAPS, average=Average(0.9, 4)),
]
