"""The drop-in classes: a class of tf_keras.optimizers with isostep's step before it."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras

from isostep.keras_api import Framework, drop_in
from isostep.rules.base import is_on
from isostep.tf_keras.optimizer import FusedApply


class _NoBuffer(Framework):
    """SGD's variables: tf_keras makes a buffer also without momentum, which nothing reads."""

    absent_in = "momentums"

    def build(self, var_list: list[Any]) -> None:
        if is_on(self.momentum) or self.built or self.steps_as_tf_keras:
            super().build(var_list)
            return
        tf_keras.optimizers.Optimizer.build(self, var_list)
        self._built = True
        self.momentums = [self.add_absent(v, "m") for v in var_list]


class _CallableMomentum(Framework):
    """RMSprop's variables: tf_keras compares momentum with zero, which a callable cannot be."""

    def build(self, var_list: list[Any]) -> None:
        given = self.momentum
        try:
            self.momentum = 1.0 if callable(given) else given
            super().build(var_list)
        finally:
            self.momentum = given


class _Factors(Framework):
    """Adafactor's variables: factors, and a full second moment only where there are none."""

    absent_in = "_v"

    def build(self, var_list: list[Any]) -> None:
        if self.built or self.steps_as_tf_keras:
            super().build(var_list)
            return
        tf_keras.optimizers.Optimizer.build(self, var_list)
        self._built = True
        self._r, self._c, self._v = map(list, zip(*map(self._moments, var_list), strict=True))

    def _moments(self, variable: Any) -> tuple[Any, Any, Any]:
        rank = len(variable.shape)
        if rank < 2:
            # tf_keras keeps a number where there are no factors, and checkpoints have it.
            name = f"r/{variable._shared_name}"
            row, column = (tf.Variable(tf.constant(0), name=name) for _ in range(2))
            return row, column, self.add_moment(variable, "v", rank)
        row, column = (self.add_moment(variable, n, rank - k) for n, k in (("r", 1), ("c", 2)))
        return row, column, self.add_absent(variable, "v")


LAZY = """lazy: step only the rows that a sparse gradient (`tf.IndexedSlices`) has; the others
            neither move nor decay. Default: it counts as the dense gradient that it stands for."""


def _drop_in(name: str, *between: type) -> Any:
    keras_class = getattr(tf_keras.optimizers, name)
    where = "tf_keras.optimizers"
    made = drop_in(keras_class, where, FusedApply, *between, doc=LAZY, lazy=False)
    return tf_keras.saving.register_keras_serializable(package="isostep")(made)


SGD = _drop_in("SGD", _NoBuffer)
Adagrad = _drop_in("Adagrad")
RMSprop = _drop_in("RMSprop", _CallableMomentum)
Adadelta = _drop_in("Adadelta")
Adam = _drop_in("Adam")
AdamW = _drop_in("AdamW")
Adafactor = _drop_in("Adafactor", _Factors)
