"""The drop-in classes: a class of keras.optimizers with isostep's step before it."""

from __future__ import annotations

from typing import Any

import keras

from isostep.keras.optimizer import FusedApply
from isostep.keras_api import Framework, drop_in


class _Factors(Framework):
    """Adafactor's variables: factors, and a full second moment only where there are none.

    They are float32 for variables of low precision: float16 has no number as small as `epsilon_1`,
    without which a gradient of zeros would make NaN.
    """

    def build(self, var_list: list[Any]) -> None:
        if self.built or self.overridden:
            super().build(var_list)
            return
        keras.optimizers.Optimizer.build(self, var_list)
        self._r, self._c, self._v = [], [], []
        for variable in var_list:
            rank = len(variable.shape)
            if rank < 2:  # Keras has scalars here, which nothing reads
                self._r.append(self._unread(variable))
                self._c.append(self._unread(variable))
            if self._overwrite_variable_with_gradient(variable):
                unmade = [self._r, self._c, self._v] if rank >= 2 else [self._v]
                for moments in unmade:
                    moments.append(None)
            elif rank < 2:
                self._v.append(self._moment(variable, "velocity", rank))
            else:
                self._r.append(self._moment(variable, "r", rank - 1))
                self._c.append(self._moment(variable, "c", rank - 2))
                self._v.append(self.add_absent(variable, "velocity"))

    def _unread(self, variable: Any) -> Any:
        return keras.Variable(0, name=variable.name, trainable=False)

    def _moment(self, variable: Any, name: str, gone: int) -> Any:
        """A variable with the axes of another but one, laid out as those are."""
        shape = tuple(n for axis, n in enumerate(variable.shape) if axis != gone)
        layout = getattr(variable, "_layout", None)
        if layout is not None and hasattr(layout, "axes"):
            axes = [a for axis, a in enumerate(layout.axes) if axis != gone]
            layout = keras.distribution.TensorLayout(axes, layout.device_mesh)
        dtype = "float64" if self.dtype_of(variable) == "float64" else "float32"
        return self.add_variable(
            shape=shape, dtype=dtype, name=f"{variable.name}_{name}", layout=layout
        )


def _drop_in(name: str, *between: type) -> Any:
    theirs = getattr(keras.optimizers, name)
    # On torch Keras makes its own classes' instances of others, whose step has all variables.
    theirs = type(theirs.__new__(theirs))
    made = drop_in(theirs, "keras.optimizers", FusedApply, *between)
    return keras.saving.register_keras_serializable(package="isostep")(made)


SGD = _drop_in("SGD")
Adagrad = _drop_in("Adagrad")
RMSprop = _drop_in("RMSprop")
Adadelta = _drop_in("Adadelta")
Adam = _drop_in("Adam")
AdamW = _drop_in("AdamW")
Adafactor = _drop_in("Adafactor", _Factors)
