"""The step that replaces tf_keras': one fused pass over all variables of a model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import tensorflow as tf
import tf_keras

from isostep.keras_api import FusedOptimizer
from isostep.tf_keras import mesh as meshes
from isostep.tf_keras.step import FusedStep

schedules = tf_keras.optimizers.schedules


class FusedApply(FusedOptimizer):
    """The fused step, for a class of tf_keras.optimizers that follows it in the bases."""

    dialect: ClassVar[str] = "tf_keras"
    lazy: bool

    def __init__(self, *args: Any, lazy: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        own = {k: v for k, v in kwargs.items() if k in self.keras_signature.parameters}
        given = self.keras_signature.bind_partial(*args, **own).arguments
        # tf_keras forgets it where there is no GPU.
        self.jit_compile = bool(given.get("jit_compile", True))
        self.lazy = bool(lazy)
        self._says_why = "jit_compile" in given and self.jit_compile
        self._step: FusedStep | None = None
        if self.lazy and self._mesh is not None:
            raise ValueError(
                "lazy=True is not possible with a mesh: TensorFlow scatters rows of no DTensor; "
                "leave out lazy, and sparse gradients count as the dense ones that they stand for"
            )

    # -- what tf_keras calls ---------------------------------------------------------------------

    def build(self, var_list: Sequence[Any]) -> None:
        """Make the variables of the optimizer: tf_keras' own, and the statistics of a report."""
        if self.built:
            return
        variables = list(var_list)
        self.hyper_groups(variables)  # what is wrong in the groups is said before anything is made
        super().build(variables)
        self._step = FusedStep(self, variables, say_why=self._says_why)
        self.add_statistics()

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
            given = initial_value() if callable(initial_value) else initial_value
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
        made = super().add_variable(shape, dtype, initializer, name)
        if self._mesh is None:
            return made
        layout = meshes.replicated(self._mesh, made.shape.rank)
        self._variables[-1] = meshes.variable(made, layout, name)
        return self._variables[-1]

    def _clip_gradients(self, grads: Any) -> Any:
        return grads if self._fuses else super()._clip_gradients(grads)

    def _deduplicate_sparse_grad(self, grads: Any) -> Any:
        return grads if self._fuses else super()._deduplicate_sparse_grad(grads)

    def _apply_weight_decay(self, variables: Any) -> None:
        if not self._fuses:
            super()._apply_weight_decay(variables)

    def _internal_apply_gradients(self, grads_and_vars: Any) -> Any:
        if self._mesh is None:  # tf_keras calls `_distributed_apply_gradients_fn` where it should
            return super()._internal_apply_gradients(grads_and_vars)
        self._now().step(*zip(*grads_and_vars, strict=True))
        return self.iterations.assign_add(1)

    def _distributed_apply_gradients_fn(
        self, distribution: Any, grads_and_vars: Any, **kwargs: Any
    ) -> Any:
        if not self._fuses:
            return super()._distributed_apply_gradients_fn(distribution, grads_and_vars, **kwargs)
        grads, variables = zip(*grads_and_vars, strict=True)
        step = self._now()
        if distribution.num_replicas_in_sync == 1:
            step.step(grads, variables)
        else:  # once on each device, with what lies there
            distribution.extended.update(
                variables[0],
                lambda _, *here: step.step(here, variables),
                args=tuple(grads),
                group=False,
            )
        return self.iterations.assign_add(1)

    def update_step(self, gradient: Any, variable: Any) -> None:
        """Step one variable by its rule alone, without clipping, decay or average.

        Args:
            gradient: a tensor or `tf.IndexedSlices`.
            variable: one that the optimizer was built with.
        """
        self._now().update(gradient, variable)

    @property
    def _fuses(self) -> bool:
        """Whether all variables are stepped at once: not where a strategy keeps each of them in a
        place of its own."""
        apart = (
            tf.distribute.experimental.ParameterServerStrategy,
            tf.distribute.experimental.CentralStorageStrategy,
            tf.distribute.ParameterServerStrategy,
            tf.distribute.TPUStrategy,
        )
        return not isinstance(self._distribution_strategy, apart)

    def _now(self) -> FusedStep:
        """The step, made again if a setting has changed."""
        assert self._step is not None
        if self._step.settings != self.settings():
            self._step = self._step.again()
        return self._step

    # -- what FusedOptimizer asks ----------------------------------------------------------------

    @property
    def built(self) -> bool:
        """Whether the optimizer has its variables."""
        return bool(getattr(self, "_built", False))

    @property
    def ran(self) -> list[str]:
        """What runs a step."""
        return [] if self._step is None else self._step.ran

    def concretely(self) -> AbstractContextManager[Any]:
        """A context in which schedules give numbers, also while a step is traced."""
        return tf.init_scope()

    def stepped_variables(self) -> list[Any]:
        """The variables that the optimizer was built with."""
        return [] if self._step is None else self._step.variables

    def name_of(self, variable: Any) -> str:
        """The name of a variable, without the number of its output."""
        return variable.name.removesuffix(":0")

    def dtype_of(self, variable: Any) -> str:
        """The dtype that a variable is stored in, which mixed precision does not show."""
        return getattr(variable, "true_dtype", variable.dtype).name

    def get_config(self) -> dict[str, Any]:
        """What `from_config` makes an equal optimizer of; it can be written as JSON."""
        return super().get_config() | ({"lazy": True} if self.lazy else {})

    def serialize_schedule(self, schedule: Any) -> Any:
        """A schedule as plain data."""
        return schedules.serialize(schedule)

    @classmethod
    def deserialize_schedule(cls, data: Any, custom_objects: Any) -> Any:
        """The schedule that plain data describe."""
        return schedules.deserialize(data, custom_objects=custom_objects)
