"""The drop-in classes: a class of tf_keras.optimizers with isostep's step before it."""

from __future__ import annotations

from typing import Any

import tf_keras

from isostep.keras_api import Framework, drop_in
from isostep.tf_keras.optimizer import FusedApply


class _NoBuffer(Framework):
    """SGD's variables: tf_keras makes a buffer also without momentum, which nothing reads."""

    def build(self, var_list: list[Any]) -> None:
        if self.momentum or self.built:
            super().build(var_list)
            return
        tf_keras.optimizers.Optimizer.build(self, var_list)
        self.momentums = []
        self._built = True


class _Factors:
    """Adafactor's variables: factors, and a full second moment only where there are none."""

    def build(self: Any, var_list: list[Any]) -> None:
        if self.built:
            return
        tf_keras.optimizers.Optimizer.build(self, var_list)
        self._built = True
        # Tuples, whose gaps the tracking of variables for checkpoints lets pass.
        self._r = tuple(self._factor(v, "r", len(v.shape) - 1) for v in var_list)
        self._c = tuple(self._factor(v, "c", len(v.shape) - 2) for v in var_list)
        self._v = tuple(
            self.add_variable_from_reference(v, "v") if len(v.shape) < 2 else None for v in var_list
        )

    def _factor(self: Any, variable: Any, name: str, gone: int) -> Any:
        """A variable with the axes of another but one, laid out as those are."""
        if len(variable.shape) < 2:
            return None
        return self.add_factor(variable, name, gone)


def _drop_in(name: str, *between: type) -> Any:
    keras_class = getattr(tf_keras.optimizers, name)
    made = drop_in(keras_class, "tf_keras.optimizers", FusedApply, *between, lazy=False)
    return tf_keras.saving.register_keras_serializable(package="isostep")(made)


SGD = _drop_in("SGD", _NoBuffer)
Adagrad = _drop_in("Adagrad")
RMSprop = _drop_in("RMSprop")
Adadelta = _drop_in("Adadelta")
Adam = _drop_in("Adam")
AdamW = _drop_in("AdamW")
Adafactor = _drop_in("Adafactor", _Factors)
