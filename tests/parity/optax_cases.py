"""The cases of optax: every rule with its flags, clipping and averaging."""

from __future__ import annotations

from .case import RANKS, Average, Case, Shapes

_FACTORED = ("flat", "lanes", "rows")
_SGD = {"learning_rate": 0.03}
_ADAGRAD = {"learning_rate": 0.3, "initial_accumulator_value": 0.3, "eps": 1e-3}
_RMSPROP = {"learning_rate": 0.02, "decay": 0.8, "eps": 1e-3, "initial_scale": 0.3}
_ADADELTA = {"learning_rate": 0.7, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.07}
_ADAM = {"learning_rate": 0.03, "b1": 0.8, "b2": 0.95, "eps": 1e-3, "eps_root": 1e-4}
_ADAMW = _ADAM | {"weight_decay": 0.07}
_ADAFACTOR = {
    "learning_rate": 0.05,
    "min_dim_size_to_factor": 3,
    "decay_rate": 0.7,
    "clipping_threshold": 0.8,
    "weight_decay_rate": 0.002,
    "eps": 1e-4,
}

# Beside those of each rank, two equal axes, and largest axes that are first and last.
_AXES: Shapes = {**RANKS, "square": (6, 6), "ends": (9, 2, 7)}
_TWO: Shapes = {"vector": (7,), "matrix": (6, 5)}


def _adafactor(name: str, shapes: Shapes = _TWO, **arguments: object) -> Case:
    """A case of Adafactor with its decay rate in float64, as it has no `quirk`."""
    rows = arguments.get("factored", True) and arguments.get("min_dim_size_to_factor", 3) == 3
    kernels = _FACTORED if shapes is _AXES else ("flat", "rows") if rows else ("flat",)
    return Case(
        name,
        "Adafactor",
        _ADAFACTOR | arguments,
        class_name="adafactor",
        shapes=shapes,
        kernels=kernels,
    )


CASES = [
    Case("sgd", "SGD", _SGD, class_name="sgd", shapes=RANKS),
    Case("sgd-momentum", "SGD", _SGD | {"momentum": 0.8}, class_name="sgd"),
    Case("sgd-nesterov", "SGD", _SGD | {"momentum": 0.8, "nesterov": True}, class_name="sgd"),
    Case("adagrad", "Adagrad", _ADAGRAD, class_name="adagrad", shapes=RANKS),
    Case(
        "adagrad-zero-where-empty",
        "Adagrad",
        {"learning_rate": 0.3, "initial_accumulator_value": 0.0, "eps": 0.0},
        class_name="adagrad",
    ),
    Case("rmsprop", "RMSprop", _RMSPROP, class_name="rmsprop", shapes=RANKS),
    *[
        Case(
            "-".join(("rmsprop", *(f"{k}={v}" for k, v in flags.items()))),
            "RMSprop",
            _RMSPROP | flags,
            class_name="rmsprop",
        )
        for flags in (
            {"eps_in_sqrt": False},
            {"centered": True},
            {"centered": True, "eps_in_sqrt": False},
            {"bias_correction": True},
            {"centered": True, "bias_correction": True},
            {"momentum": 0.8},
            {"momentum": 0.8, "nesterov": True},
            {"momentum": 0.8, "nesterov": True, "centered": True, "bias_correction": True},
        )
    ],
    Case("adadelta", "Adadelta", _ADADELTA, class_name="adadelta", shapes=RANKS),
    Case("adam", "Adam", _ADAM, class_name="adam", shapes=RANKS),
    Case("adam-nesterov", "Adam", _ADAM | {"nesterov": True}, class_name="adam"),
    Case("adam-slow-betas", "Adam", _ADAM | {"b1": 0.99, "b2": 0.9999}, class_name="adam"),
    Case("amsgrad", "Adam", _ADAM, class_name="amsgrad"),
    Case("adamw", "AdamW", _ADAMW, class_name="adamw", shapes=RANKS),
    Case("adamw-nesterov", "AdamW", _ADAMW | {"nesterov": True}, class_name="adamw"),
    Case(
        "adafactor",
        "Adafactor",
        _ADAFACTOR,
        class_name="adafactor",
        shapes=_AXES,
        kernels=_FACTORED,
        quirk="optax-adafactor-decay-rate-in-float32",
        tolerance=1e-6,
    ),
    _adafactor("adafactor-exact-decay-rate", _AXES),
    _adafactor("adafactor-not-factored", factored=False),
    _adafactor("adafactor-too-short-to-factor", min_dim_size_to_factor=6),
    _adafactor("adafactor-no-parameter-scale", multiply_by_parameter_scale=False),
    _adafactor("adafactor-no-clipping", clipping_threshold=None),
    _adafactor("adafactor-momentum", momentum=0.8),
    _adafactor("adafactor-no-learning-rate", learning_rate=None, multiply_by_parameter_scale=False),
    Case(
        "clip-value-sgd",
        "SGD",
        _SGD | {"momentum": 0.8},
        class_name="sgd",
        clip=("value", 0.4),
    ),
    Case(
        "clip-global-norm-sgd",
        "SGD",
        _SGD | {"momentum": 0.8},
        class_name="sgd",
        clip=("global_norm", 5.0),
    ),
    Case(
        "clip-global-norm-adamw",
        "AdamW",
        _ADAMW,
        class_name="adamw",
        shapes=RANKS,
        clip=("global_norm", 20.0),
    ),
    *[
        Case(f"{value}-{kind}", "SGD", _SGD, class_name="sgd", clip=(kind, 5.0), poison=value)
        for kind in ("value", "global_norm")
        for value in (float("inf"), float("nan"))
    ],
    Case("average-adamw", "AdamW", _ADAMW, class_name="adamw", average=Average(0.9)),
]
