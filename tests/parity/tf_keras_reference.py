"""Runs `tf_keras_cases` through tf_keras: `python -m tests.parity.tf_keras_reference FILE`.

With `isostep.tf_keras` as a second argument its classes stand in the place of tf_keras' own.
"""

from __future__ import annotations

import importlib
import logging
import sys
from functools import partial
from typing import Any

import numpy as np
import tensorflow
import tf_keras

from .case import Array, Case, State, defaults, record
from .tf_keras_cases import CASES


class TfKerasRunner:
    def __init__(
        self,
        case: Case,
        parameters: dict[str, Array],
        dtype: str,
        classes: Any = tf_keras.optimizers,
    ) -> None:
        tf_keras.backend.set_floatx(dtype)
        self.variables = {n: tensorflow.Variable(a, name=n) for n, a in parameters.items()}
        self.optimizer = getattr(classes, case.framework_class)(**case.arguments, **options(case))
        self.optimizer.build(list(self.variables.values()))
        self.apply = tensorflow.function(self._apply)

    def _apply(self, gradients: list[Any]) -> None:
        self.optimizer.apply_gradients(list(zip(gradients, self.variables.values(), strict=True)))

    def step(self, gradients: dict[str, Array | None]) -> None:
        self.apply([None if g is None else tensorflow.constant(g) for g in gradients.values()])

    def state(self) -> State:
        found: State = {n: {"param": v.numpy()} for n, v in self.variables.items()}
        for slot in self.optimizer.variables:
            kind, _, name = slot.name.removesuffix(":0").partition("/")
            if name in found:
                found[name][kind] = slot.numpy()
        return found


def options(case: Case) -> dict[str, Any]:
    """Clipping and averaging as the constructors of tf_keras take them."""
    names = {"value": "clipvalue", "norm": "clipnorm", "global_norm": "global_clipnorm"}
    found: dict[str, Any] = {names[case.clip[0]]: case.clip[1]} if case.clip else {}
    found["ema_overwrite_frequency"] = case.average.every if case.average else None
    if case.average:
        found |= {"use_ema": True, "ema_momentum": case.average.momentum}
    return found


def probes() -> dict[str, Array]:
    """What the tests of single facts look at."""
    tf_keras.backend.set_floatx("float32")
    adam = tf_keras.optimizers.Adam(adaptive_epsilon=True)
    return {
        "defaults": defaults(
            {
                case.framework_class: getattr(tf_keras.optimizers, case.framework_class)
                for case in CASES
            }
        ),
        "learning-rate": _steps(tf_keras.optimizers.SGD(0.1), [0.0], [1.0], 1)[-1],
        "average": _average(),
        "rmsprop-overwrites": np.array(tf_keras.optimizers.RMSprop().ema_overwrite_frequency),
        "adam-config": np.array("adaptive_epsilon" in adam.get_config()),
        "clip-value-and-norm": _steps(
            tf_keras.optimizers.SGD(1.0, clipnorm=1.0, clipvalue=0.1), [0.0, 0.0], [3.0, 4.0], 1
        )[-1],
    }


def _average() -> Array:
    """The hand vector of the moving average: the parameter after each of three steps."""
    tf_keras.backend.set_floatx("float64")
    optimizer = tf_keras.optimizers.SGD(
        1.0, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3
    )
    return _steps(optimizer, 2.0, 1.0, 3)


def _steps(optimizer: Any, start: Any, gradient: Any, steps: int) -> Array:
    """A float64 parameter after each of several steps along one gradient."""
    variable = tensorflow.Variable(np.array(start))
    found = []
    for _ in range(steps):
        optimizer.apply_gradients([(tensorflow.constant(np.array(gradient)), variable)])
        found.append(variable.numpy())
    return np.array(found)


if __name__ == "__main__":
    logging.disable()  # about variables without gradients, and functions traced anew for them
    if sys.argv[2:]:
        make = partial(TfKerasRunner, classes=importlib.import_module(sys.argv[2]))
        record(sys.argv[1], CASES, make, dtypes=["float64"])
    else:
        record(sys.argv[1], CASES, TfKerasRunner, probes)
