"""The variables of an optimizer of tf_keras: on a mesh, in saved states and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import tensorflow as tf
import tf_keras

from isostep.keras_api import Absent, FusedOptimizer
from isostep.tf_keras import mesh as meshes

schedules = tf_keras.optimizers.schedules
Trackable: Any = tf.__internal__.tracking.Trackable


class AbsentVariable(Trackable, Absent):
    """An `Absent` that has its place in checkpoints as well, and reads as zeros.

    Args:
        reference: the model's variable that it belongs to.
        name: what tf_keras calls it.
        dtype: of tf_keras' variable.
    """

    def __init__(self, reference: Any, name: str, dtype: str) -> None:
        parts = [tf.get_current_name_scope(), name, reference._shared_name]
        Absent.__init__(self, reference.shape, dtype, "/".join(filter(None, parts)) + ":0")
        self.reference, self.prefix = reference, name

    @property
    def layout(self) -> Any:
        """That of the model's variable, on a mesh."""
        return self.reference.layout

    def read_value(self) -> Any:
        """Zeros."""
        layout = getattr(self.reference, "layout", None)
        if layout is None:
            return tf.zeros(self.shape, self.dtype)
        return meshes.zeros(self.shape, self.dtype, layout)

    def value(self) -> Any:
        """Zeros."""
        return self.read_value()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.numpy() if dtype is None else self.numpy().astype(dtype)

    def _serialize_to_tensors(self) -> dict[str, Any]:
        return {"VARIABLE_VALUE": self.read_value()}

    @tf.autograph.experimental.do_not_convert
    def _restore_from_tensors(self, restored_tensors: Any) -> None:
        """Take nothing."""


def _read(absent: AbsentVariable, dtype: Any = None, name: Any = None, as_ref: bool = False) -> Any:
    value = absent.read_value()
    return value if dtype in (None, value.dtype) else NotImplemented


tf.register_tensor_conversion_function(AbsentVariable, _read)


class OptimizerVariables(FusedOptimizer):
    """How variables are made and saved, for a class of tf_keras.optimizers that follows.

    Among them is an `AbsentVariable` for each that tf_keras' own class keeps and the fused step has
    no use for: checkpoints and `set_weights` go by place.
    """

    absent_in: ClassVar[str]
    """The list of a slot whose variables may be absent."""

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the variables.

        Args:
            weights: arrays or variables in the order of `variables`, which is that of tf_keras' own
                class.

        Raises:
            ValueError: the optimizer was not built yet, or a shape is wrong; nothing was changed.
        """
        known = self._variables if self.built else ()
        for variable, weight in zip(known, weights, strict=False):
            # Before any is set: tf_keras sets those that come before a wrong one.
            if tuple(variable.shape) != tuple(weight.shape):
                raise ValueError(
                    f"optimizer variable {variable.name} has shape {tuple(variable.shape)}, not "
                    f"compatible with provided weight shape {tuple(weight.shape)}; nothing was set"
                )
        super().set_weights(weights)

    # -- making them -----------------------------------------------------------------------------

    def add_absent(self, reference: Any, name: str) -> AbsentVariable:
        """Leave the place of a variable that tf_keras makes for one of the model's.

        Args:
            reference: the model's variable.
            name: what tf_keras calls it.
        """
        made = AbsentVariable(reference, name, self.dtype_of(reference))
        self._variables.append(made)
        return made

    def fill_absent(self) -> None:
        """Make the variables that tf_keras keeps and the fused step does not, for tf_keras' own."""
        absent = [v for v in self._variables if isinstance(v, AbsentVariable)]
        if not absent:
            return
        known = len(self._variables)
        with tf.init_scope():
            made = [self.add_variable_from_reference(v.reference, v.prefix) for v in absent]
        replaced = {id(old): new for old, new in zip(absent, made, strict=True)}
        # New lists: a checkpoint refuses one of which an element was replaced.
        for name in ("_variables", self.absent_in):
            held = getattr(self, name)[:known]
            setattr(self, name, [replaced.get(id(v), v) for v in held])
        self.__dict__.pop("_coalesced_children", None)

    def add_variable_from_reference(
        self,
        model_variable: Any,
        variable_name: str,
        shape: Any = None,
        initial_value: Any = None,
    ) -> Any:
        """A variable of the optimizer for one of the model.

        Args:
            model_variable: the model's variable.
            variable_name: what goes before its name.
            shape: default: that of the model's variable. On a mesh a variable of that shape is
                laid out as the model's, one of another shape is replicated.
            initial_value: a value, also one of another shape; or a callable without arguments
                that gives it. Default: zeros.
        """
        if self._mesh is None:
            return super().add_variable_from_reference(
                model_variable, variable_name, shape, initial_value
            )
        dtype = getattr(model_variable, "true_dtype", model_variable.dtype)
        if initial_value is not None:
            given: Any = initial_value() if callable(initial_value) else initial_value
            initial_value = tf.convert_to_tensor(given, dtype)
            shape = initial_value.shape
        shape = model_variable.shape if shape is None else tf.TensorShape(shape)
        alike = shape == model_variable.shape
        layout = model_variable.layout if alike else meshes.replicated(self._mesh, shape.rank)
        value = meshes.zeros(shape, dtype, layout) if initial_value is None else initial_value
        name = f"{variable_name}/{model_variable._shared_name}"
        variable = meshes.variable(value, layout, name)
        self._variables.append(variable)
        return variable

    def add_moment(self, model_variable: Any, variable_name: str, gone: int) -> Any:
        """Zeros of the shape of one of the model's variables without an axis; on a mesh they are
        laid out as the other axes are.

        They are float32 for variables of low precision: float16 has no number as small as
        `epsilon_1`, without which a gradient of zeros would make NaN.
        """
        shape = [n for axis, n in enumerate(model_variable.shape) if axis != gone]
        dtype = "float64" if self.dtype_of(model_variable) == "float64" else "float32"
        name = f"{variable_name}/{model_variable._shared_name}"
        if self._mesh is not None:
            layout = meshes.without_axis(model_variable.layout, gone)
            made = meshes.variable(meshes.zeros(shape, dtype, layout), layout, name)
        else:
            with self._distribution_strategy.extended.colocate_vars_with(model_variable):
                made = tf.Variable(tf.zeros(shape, dtype), name=name, trainable=False)
        self._variables.append(made)
        return made

    def add_variable(
        self, shape: Any, dtype: Any = None, initializer: Any = "zeros", name: str | None = None
    ) -> Any:
        """A variable of the optimizer; on a mesh it is replicated.

        Args:
            shape: its shape; None: a scalar.
            dtype: default: tf_keras' floatx.
            initializer: an initializer of tf_keras, or its name.
            name: its name.
        """
        if self._mesh is None:
            return super().add_variable(shape, dtype, initializer, name)
        make: Any = tf_keras.initializers.get(initializer)
        value = make([] if shape is None else shape, dtype or tf_keras.backend.floatx())
        made = meshes.variable(value, meshes.replicated(self._mesh, value.shape.rank), name)
        self._variables.append(made)
        return made

    def _build_learning_rate(self, learning_rate: Any) -> Any:
        if self._mesh is None:
            return super()._build_learning_rate(learning_rate)
        layout = meshes.replicated(self._mesh, 0)
        if isinstance(learning_rate, schedules.LearningRateSchedule):
            now = learning_rate(self.iterations)
            self._current_learning_rate = meshes.variable(now, layout, "learning_rate")
            return learning_rate
        # tf_keras takes it for float32 here, whatever floatx is.
        value = tf.constant(learning_rate, tf_keras.backend.floatx())
        return meshes.variable(value, layout, "learning_rate")
