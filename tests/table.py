"""The one table of configurations that the tests cross with engines, dtypes, shapes and laws.

Every hyperparameter of every rule is given, away from its neutral value, so that leaving any of
them out of a formula shows. `FORMS` are the rules in each of their forms; `RECIPES` are what a step
does around a rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import isostep
from isostep.recipe import EMA, Clip

from .oracle import Oracle

AnyArray = NDArray[Any]

DTYPES: dict[str, Any] = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}

# One tensor for each way of walking: 0-d, flat, a matrix (rows), small kernels (lanes). `rest`
# starts at zero, where the parameter scale of Adafactor reaches its floor.
SHAPES: dict[str, tuple[int, ...]] = {
    "scalar": (),
    "bias": (65,),
    "weight": (9, 17),
    "kernel": (8, 4, 3, 3),
    "rest": (6,),
}


@dataclass(frozen=True)
class Config:
    """A rule in one form, with one set of options, for isostep and for the oracle alike.

    Args:
        name: the test's id.
        rule: the rule.
        h: all its hyperparameters, by isostep's names.
        dialect: decides clip formula, decay and step count; `h` overrides its form of the rule.
        clip: None or (kind, bound).
        ema: None or (momentum, overwrite_every, start).
        loss_scale: what gradients are divided by.
    """

    name: str
    rule: str
    h: Mapping[str, Any]
    dialect: str = "torch"
    clip: tuple[str, float] | None = None
    ema: tuple[float, int | None, Any] | None = None
    maximize: bool = False
    decay: Any = None
    loss_scale: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def optimizer(self, params: Any, **more: Any) -> isostep.Optimizer:
        own = {
            "dialect": self.dialect,
            "clip": Clip(**{self.clip[0]: self.clip[1]}) if self.clip else None,
            "ema": self._ema(),
            "maximize": self.maximize,
            "decay": self.decay,
        }
        return isostep.Optimizer(self.rule, params, **{**own, **self.h, **self.options, **more})

    def _ema(self) -> EMA | None:
        if self.ema is None:
            return None
        momentum, every, start = self.ema
        return EMA(momentum, overwrite_every=every, start=start)

    def oracle(self, params: Mapping[str, AnyArray], **more: Any) -> Oracle:
        return Oracle(
            self.rule,
            {**self.h, **more},
            dict(params),
            self.dialect,
            self.clip,
            self.ema,
            self.maximize,
            self.decay,
        )


SGD = {
    "lr": 0.07,
    "momentum": 0.8,
    "dampening": 0.3,
    "nesterov": False,
    "weight_decay": 0.03,
    "buffer": "direction",
}
ADAGRAD = {
    "lr": 0.2,
    "lr_decay": 0.05,
    "initial_accumulator_value": 0.1,
    "eps": 0.02,
    "weight_decay": 0.03,
    "eps_in_root": False,
    "zero_where_empty": False,
}
RMSPROP = {
    "lr": 0.03,
    "alpha": 0.9,
    "eps": 0.01,
    "weight_decay": 0.03,
    "momentum": 0.0,
    "centered": False,
    "nesterov": False,
    "bias_correction": False,
    "initial_scale": 0.5,
    "eps_in_root": False,
    "buffer": "direction",
}
ADADELTA = {"lr": 0.8, "rho": 0.85, "eps": 0.01, "weight_decay": 0.03}
ADAM = {
    "lr": 0.05,
    "beta1": 0.8,
    "beta2": 0.95,
    "eps": 0.02,
    "weight_decay": 0.03,
    "amsgrad": False,
    "eps_root": 0.0,
    "nesterov": False,
    "eps_hat": False,
    "max_of_corrected": False,
}
ADAFACTOR = {
    "lr": 0.2,
    "decay_rate": 0.7,
    "eps1": 1e-3,
    "eps2": 0.05,
    "clip_threshold": 0.7,
    "weight_decay": 0.03,
    "relative_step": True,
    "parameter_scale": True,
    "momentum": 0.0,
    "factored": True,
    "min_dim_to_factor": 1,
    "largest_axes": False,
    "clamp_eps": False,
    "nan_rms_is_small": False,
}


def form(name: str, rule: str, base: dict[str, Any], dialect: str = "torch", **h: Any) -> Config:
    return Config(name, rule, base | h, dialect)


FORMS: list[Config] = [
    form("sgd", "SGD", SGD, momentum=0.0),
    form("sgd-momentum", "SGD", SGD),
    form("sgd-nesterov", "SGD", SGD, nesterov=True),
    form("sgd-step-nesterov", "SGD", SGD, buffer="step", nesterov=True),
    form("sgd-update", "SGD", SGD, buffer="update"),
    form("sgd-update-nesterov", "SGD", SGD, buffer="update", nesterov=True),
    form("adagrad", "Adagrad", ADAGRAD),
    form("adagrad-in-root", "Adagrad", ADAGRAD, eps_in_root=True),
    form(
        "adagrad-zero-where-empty",
        "Adagrad",
        ADAGRAD,
        zero_where_empty=True,
        eps=0.0,
        initial_accumulator_value=0.0,
        weight_decay=0.0,
    ),
    form("rmsprop", "RMSprop", RMSPROP),
    form("rmsprop-in-root", "RMSprop", RMSPROP, eps_in_root=True),
    form("rmsprop-centered", "RMSprop", RMSPROP, centered=True),
    form("rmsprop-momentum", "RMSprop", RMSPROP, momentum=0.7),
    form(
        "rmsprop-step-centered",
        "RMSprop",
        RMSPROP,
        momentum=0.7,
        buffer="step",
        centered=True,
        eps_in_root=True,
    ),
    form(
        "rmsprop-update-nesterov-corrected",
        "RMSprop",
        RMSPROP,
        momentum=0.7,
        buffer="update",
        nesterov=True,
        centered=True,
        bias_correction=True,
    ),
    form("rmsprop-corrected", "RMSprop", RMSPROP, bias_correction=True, initial_scale=0.0),
    form("adadelta", "Adadelta", ADADELTA),
    form("adam", "Adam", ADAM, eps_root=0.1),
    form("adam-amsgrad", "Adam", ADAM, amsgrad=True),
    form(
        "adam-amsgrad-corrected",
        "Adam",
        ADAM,
        amsgrad=True,
        max_of_corrected=True,
        eps_root=0.1,
    ),
    form("adam-nesterov", "Adam", ADAM, nesterov=True),
    form("adam-eps-hat", "Adam", ADAM, eps_hat=True),
    form("adam-beta1-zero", "Adam", ADAM, beta1=0.0),
    form("adam-eps-hat-amsgrad-keras", "Adam", ADAM, "keras", eps_hat=True, amsgrad=True),
    form("adamw", "AdamW", ADAM),
    form("adamw-optax-nesterov", "AdamW", ADAM, "optax", nesterov=True),
    form("adafactor", "Adafactor", ADAFACTOR),
    form(
        "adafactor-torch", "Adafactor", ADAFACTOR, clamp_eps=True, nan_rms_is_small=True, eps1=0.3
    ),
    form("adafactor-keras", "Adafactor", ADAFACTOR, "keras"),
    form(
        "adafactor-optax",
        "Adafactor",
        ADAFACTOR,
        "optax",
        momentum=0.7,
        largest_axes=True,
        min_dim_to_factor=4,
        relative_step=False,
        lr=0.03,
    ),
    form(
        "adafactor-bare",
        "Adafactor",
        ADAFACTOR,
        clip_threshold=None,
        parameter_scale=False,
        relative_step=False,
        lr=0.05,
    ),
    form("adafactor-not-factored", "Adafactor", ADAFACTOR, factored=False),
]

# The form of each rule that stands for it where a law is crossed with something else.
PLAIN = ["sgd-momentum", "adagrad", "rmsprop-step-centered", "adadelta", "adam", "adamw"]

RECIPES: list[Config] = [
    *(
        Config(f"clip-{kind}-{dialect}", "Adam", ADAM, dialect, clip=(kind, bound))
        for dialect in ("torch", "keras", "paddle", "optax")
        for kind, bound in (("value", 0.8), ("norm", 3.0), ("global_norm", 9.0))
    ),
    Config("maximize-coupled", "Adam", ADAM, maximize=True, decay="coupled", loss_scale=64.0),
    Config("maximize-decoupled", "SGD", SGD, maximize=True, decay="decoupled", loss_scale=0.1),
    Config("decay-keras", "SGD", SGD | {"dampening": 0.0}, "keras"),
    Config("ema-initial", "SGD", SGD, ema=(0.9, None, "initial")),
    Config("ema-first-update", "SGD", SGD, ema=(0.9, None, "first_update")),
    Config("ema-keras", "SGD", SGD | {"dampening": 0.0}, "keras", ema=(0.85, 3, "first_update")),
    Config("ema-overwrite", "Adam", ADAM, "tf_keras", ema=(0.85, 3, "initial")),
    Config("ema-overwrite-first-update", "Adam", ADAM, ema=(0.85, 3, "first_update")),
    Config(
        "everything",
        "AdamW",
        ADAM,
        clip=("global_norm", 9.0),
        ema=(0.9, 4, "first_update"),
        maximize=True,
        loss_scale=8.0,
        options={"nonfinite": "skip", "report": True},
    ),
    Config(
        "everything-adafactor",
        "Adafactor",
        ADAFACTOR,
        clip=("global_norm", 9.0),
        ema=(0.9, 4, "initial"),
        maximize=True,
        loss_scale=8.0,
        options={"nonfinite": "raise", "report": True},
    ),
]

# What separates dialects is coefficients and the order of decay, which float64 tells apart; in
# float32 one dialect of each is enough, and saves compiling.
SINGLE = [
    config
    for config in FORMS + RECIPES
    if config.dialect in ("torch", "optax") or config.name == "clip-global_norm-keras"
]

BY_NAME = {config.name: config for config in FORMS + RECIPES}


def named(*names: str) -> list[Config]:
    return [BY_NAME[name] for name in names]


def parameters(seed: int = 0, dtype: str = "float64") -> dict[str, AnyArray]:
    random = np.random.default_rng([seed, 1])
    params = {name: random.normal(size=shape) for name, shape in SHAPES.items()}
    params["rest"] = np.zeros(SHAPES["rest"])
    return {name: np.asarray(p).astype(DTYPES[dtype]) for name, p in params.items()}


def gradients(step: int, seed: int = 0, dtype: str = "float64") -> dict[str, AnyArray]:
    """Of very different sizes, so that bounds and floors hold for some tensors and not for others;
    one element never has a gradient other than zero."""
    random = np.random.default_rng([seed, 2, step])
    sizes = dict(zip(SHAPES, (1.0, 0.05, 1.5, 0.4, 2.0), strict=True))
    grads = {n: np.asarray(sizes[n] * random.normal(size=s)) for n, s in SHAPES.items()}
    grads["bias"][3] = 0.0
    return {name: g.astype(DTYPES[dtype]) for name, g in grads.items()}


def copied(params: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    return {name: p.copy() for name, p in params.items()}


def state_of(optimizer: isostep.Optimizer, params: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    """Every array that a step writes: parameters, slots, averages and masters, by dotted name."""
    found = dict(params)
    for name in params:
        found |= {f"{name}.{slot}": a for slot, a in optimizer.slots(name).items()}
    return found


def assert_same_bits(a: Mapping[str, AnyArray], b: Mapping[str, AnyArray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name
