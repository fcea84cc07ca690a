"""Runs `keras_cases` through Keras 3: `python -m tests.parity.keras_reference FILE`.

With `isostep.keras` as a second argument its classes stand in the place of Keras' own.

`KERAS_BACKEND` chooses the backend. TensorFlow's, which alone keeps to float64 throughout, runs all
cases; the others run those that go through every rule, clip and average once.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np

from .case import Array, Case, State, defaults, record
from .keras_cases import CASES, EVERYWHERE


class KerasRunner:
    """Keras as each backend's own trainer calls it: compiled where that is the custom."""

    def __init__(
        self, case: Case, parameters: dict[str, Array], dtype: str, classes: Any = keras.optimizers
    ) -> None:
        keras.config.set_floatx(dtype)
        self.variables = {n: keras.Variable(a, dtype=dtype, name=n) for n, a in parameters.items()}
        self.dtype = dtype
        self.optimizer = getattr(classes, case.framework_class)(**case.arguments, **options(case))
        self.optimizer.build(list(self.variables.values()))
        self.apply = {"tensorflow": self._in_graph, "jax": self._stateless}.get(
            keras.backend.backend(), self._eager
        )()

    def _eager(self) -> Callable[[list[Any]], None]:
        return lambda gradients: self.optimizer.apply(gradients, list(self.variables.values()))

    def _in_graph(self) -> Callable[[list[Any]], None]:
        import tensorflow

        return tensorflow.function(self._eager())

    def _stateless(self) -> Callable[[list[Any]], None]:
        import jax

        compiled = jax.jit(self.optimizer.stateless_apply)
        trainable, kept = list(self.variables.values()), self.optimizer.variables

        def apply(gradients: list[Any]) -> None:
            new = compiled([v.value for v in kept], gradients, [v.value for v in trainable])
            for variables, values in zip((trainable, kept), new, strict=True):
                for variable, value in zip(variables, values, strict=True):
                    variable.assign(value)

        return apply

    def step(self, gradients: dict[str, Array | None]) -> None:
        self.apply(
            [
                None if g is None else keras.ops.convert_to_tensor(g, dtype=self.dtype)
                for g in gradients.values()
            ]
        )

    def state(self) -> State:
        found: State = {n: {"param": as_array(v)} for n, v in self.variables.items()}
        for slot in self.optimizer.variables:
            name, _, kind = slot.name.partition("_")
            if name in found and kind:
                found[name][kind] = as_array(slot)
        for slot in ("r", "c"):  # Adafactor's, which bear the name of the variable alone
            factors = getattr(self.optimizer, f"_{slot}", [])
            for (name, variable), factor in zip(self.variables.items(), factors, strict=False):
                if len(variable.shape) > 1:
                    found[name][slot] = as_array(factor)
        return found


def as_array(variable: Any) -> Array:
    return np.array(keras.ops.convert_to_numpy(variable))


def options(case: Case) -> dict[str, Any]:
    """Clipping and averaging as Keras' constructors take them."""
    names = {"value": "clipvalue", "norm": "clipnorm", "global_norm": "global_clipnorm"}
    found: dict[str, Any] = {names[case.clip[0]]: case.clip[1]} if case.clip else {}
    if case.average:
        found |= {
            "use_ema": True,
            "ema_momentum": case.average.momentum,
            "ema_overwrite_frequency": case.average.every,
        }
    return found


def probes() -> dict[str, Array]:
    """What the tests of single facts look at."""
    return {
        "defaults": defaults(
            {
                case.framework_class: getattr(keras.optimizers, case.framework_class)
                for case in CASES
            }
        ),
        "learning-rate": _learning_rate(),
        "average": _average(),
    }


def _learning_rate() -> Array:
    """One step of a float64 variable while floatx is float32."""
    keras.config.set_floatx("float32")
    variable = keras.Variable(np.zeros(1), dtype="float64")
    gradient = keras.ops.convert_to_tensor(np.ones(1), dtype="float64")
    keras.optimizers.SGD(0.1).apply([gradient], [variable])
    return as_array(variable)


def _average() -> Array:
    """The hand vector of the moving average: the parameter after each of three steps."""
    keras.config.set_floatx("float64")
    variable = keras.Variable(np.array(2.0), dtype="float64")
    gradient = keras.ops.convert_to_tensor(np.array(1.0), dtype="float64")
    optimizer = keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3)
    found = []
    for _ in range(3):
        optimizer.apply([gradient], [variable])
        found.append(as_array(variable))
    return np.array(found)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # about variables without gradients
    if sys.argv[2:]:
        module = importlib.import_module(sys.argv[2])
        make = partial(KerasRunner, classes=module)
        record(sys.argv[1], CASES, make, dtypes=["float64"])
    else:
        cases = CASES if keras.backend.backend() == "tensorflow" else EVERYWHERE
        record(sys.argv[1], cases, KerasRunner, probes)
