"""What Keras 3's three backends share: the optimizer of a case, its variables and its versions."""

from __future__ import annotations

from typing import Any

import keras

from benchmarks.cases import EMA_MOMENTUM, GLOBAL_NORM, LEARNING_RATE, Case
from benchmarks.models import Floats


def optimizer(case: Case, variables: list[Any], classes: Any = keras.optimizers) -> Any:
    """The optimizer of `case`, Keras' own or isostep's, built for `variables`."""
    options: dict[str, Any] = {"learning_rate": LEARNING_RATE[case.rule], **case.hyperparameters}
    if case.composite:
        options |= {"global_clipnorm": GLOBAL_NORM, "use_ema": True, "ema_momentum": EMA_MOMENTUM}
    made = getattr(classes, case.rule)(**options)
    made.build(variables)
    return made


def variables_of(params: list[Floats]) -> list[Any]:
    """Keras variables with copies of `params`."""
    return [keras.Variable(p.copy()) for p in params]


def keras_versions() -> dict[str, str]:
    """The version of Keras."""
    return {"keras": keras.__version__}
