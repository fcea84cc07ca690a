"""The drop-in classes: a class of keras.optimizers with isostep's step before it."""

from __future__ import annotations

import inspect
from typing import Any

import keras

from isostep import dialects
from isostep.keras.optimizer import FusedApply


def _drop_in(keras_class: Any, *before: type) -> Any:
    name = keras_class.__name__
    rule = dialects.get("keras").spelling(name).rule
    own: dict[str, Any] = {"rule": rule, "__module__": "isostep.keras"}
    made: Any = type(name, (*before, FusedApply, keras_class), own)
    made.__doc__ = f"""keras.optimizers.{name} in one fused step: the same arguments and numbers.

    Args:
        All arguments of keras.optimizers.{name}: as there; `weight_decay` may also be a callable of
            the iteration.
        groups: `isostep.Group(pattern, **hyperparameters)` over the paths of variables.
        nonfinite: `"propagate"`, or `"skip"`: a step with an infinite or NaN gradient changes no
            variable.
    """
    signature = inspect.signature(keras_class)
    extra = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=d)
        for n, d in (("groups", ()), ("nonfinite", "propagate"))
    ]
    parameters = list(signature.parameters.values())
    made.__signature__ = signature.replace(parameters=[*parameters[:-1], *extra, parameters[-1]])
    return keras.saving.register_keras_serializable(package="isostep")(made)


class _Factors:
    """Adafactor's variables: factors, and a full second moment only where there are none."""

    def build(self: Any, var_list: list[Any]) -> None:
        if self.built:
            return
        super(keras.optimizers.Adafactor, self).build(var_list)
        self._r, self._c, self._v = [], [], []
        for variable in var_list:
            shape = tuple(variable.shape)
            skipped = self._overwrite_variable_with_gradient(variable)
            factored = len(shape) >= 2 and not skipped
            full = len(shape) < 2 and not skipped
            self._r.append(self._factor(variable, len(shape) - 1) if factored else None)
            self._c.append(self._factor(variable, len(shape) - 2) if factored else None)
            named = {"reference_variable": variable, "name": "velocity"}
            self._v.append(self.add_variable_from_reference(**named) if full else None)

    def _factor(self: Any, variable: Any, gone: int) -> Any:
        """A variable with the axes of another but one, laid out as those are."""
        shape = tuple(n for axis, n in enumerate(variable.shape) if axis != gone)
        layout = getattr(variable, "_layout", None)
        if layout is not None and hasattr(layout, "axes"):
            axes = [a for axis, a in enumerate(layout.axes) if axis != gone]
            layout = keras.distribution.TensorLayout(axes, layout.device_mesh)
        return self.add_variable(
            shape=shape, dtype=variable.dtype, name=variable.name, layout=layout
        )


SGD = _drop_in(keras.optimizers.SGD)
Adagrad = _drop_in(keras.optimizers.Adagrad)
RMSprop = _drop_in(keras.optimizers.RMSprop)
Adadelta = _drop_in(keras.optimizers.Adadelta)
Adam = _drop_in(keras.optimizers.Adam)
AdamW = _drop_in(keras.optimizers.AdamW)
Adafactor = _drop_in(keras.optimizers.Adafactor, _Factors)
