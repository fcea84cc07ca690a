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
        ranks = [(v, len(v.shape)) for v in var_list]
        # Tuples, whose gaps the tracking of variables for checkpoints lets pass.
        self._r = tuple(self.add_moment(v, "r", n - 1) if n >= 2 else None for v, n in ranks)
        self._c = tuple(self.add_moment(v, "c", n - 2) if n >= 2 else None for v, n in ranks)
        self._v = tuple(self.add_moment(v, "v", n) if n < 2 else None for v, n in ranks)


LAZY = """lazy: step only the rows that a sparse gradient (`tf.IndexedSlices`) has; the others
            neither move nor decay. Default: it counts as the dense gradient that it stands for."""


def _drop_in(name: str, *between: type) -> Any:
    keras_class = getattr(tf_keras.optimizers, name)
    where = "tf_keras.optimizers"
    made = drop_in(keras_class, where, FusedApply, *between, doc=LAZY, lazy=False)
    return tf_keras.saving.register_keras_serializable(package="isostep")(made)


SGD = _drop_in("SGD", _NoBuffer)
Adagrad = _drop_in("Adagrad")
RMSprop = _drop_in("RMSprop")
Adadelta = _drop_in("Adadelta")
Adam = _drop_in("Adam")
AdamW = _drop_in("AdamW")
Adafactor = _drop_in("Adafactor", _Factors)
