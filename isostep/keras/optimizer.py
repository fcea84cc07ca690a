"""The step that replaces Keras': one fused pass over all variables of a model."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import keras
from keras import backend

from isostep.keras.traced import TracedApply
from isostep.keras_api import FusedOptimizer
from isostep.report import Report
from isostep.stepper import Engine


class FusedApply(FusedOptimizer):
    """The fused step, for a class of keras.optimizers that follows it in the bases."""

    dialect: ClassVar[str] = "keras"

    def build(self, variables: list[Any]) -> None:
        """Make the variables of the optimizer: Keras' own, and the statistics of a report."""
        if self.built:
            return
        self.hyper_groups(variables)  # what is wrong in the groups is said before anything is made
        super().build(variables)
        self.add_statistics()
        self._settings = self.settings()
        self._applies = self._engine()

    def _engine(self) -> TracedApply:
        if backend.backend() == "torch":
            from isostep.keras.on_torch import NativeApply

            return NativeApply(self)
        if backend.backend() == "tensorflow":
            from isostep.keras.on_tensorflow import TensorFlowApply

            return TensorFlowApply(self)
        return TracedApply(self)

    # -- what Keras calls ------------------------------------------------------------------------

    def _backend_apply_gradients(self, grads: Any, trainable_variables: Any) -> None:
        if self.settings() != self._settings:
            self._settings, self._applies = self.settings(), self._engine()
        self._applies.apply(list(grads), list(trainable_variables))

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Step one variable by its rule alone."""
        self._applies.update(gradient, variable, learning_rate)

    @property
    def ran(self) -> list[str]:
        """What ran in the last step: engine, layout and dtype of each kernel, or the backend."""
        return self._applies.ran if self.built else []

    @property
    def report(self) -> Report | None:
        """What the last step measured, if the optimizer was made with `report=True`.

        Reading it waits for the step.
        """
        measured = self._applies.measured if self.built else None
        return super().report if measured is None else measured

    # -- what FusedOptimizer asks ----------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """What runs a step."""
        return "native" if backend.backend() == "torch" else "array"

    def concretely(self) -> AbstractContextManager[Any]:
        """A context in which schedules give numbers, also while a step is traced."""
        if backend.backend() == "tensorflow":
            import tensorflow as tf

            return tf.init_scope()
        if backend.backend() == "jax":
            import jax

            return jax.ensure_compile_time_eval()
        return contextlib.nullcontext()

    def stepped_variables(self) -> list[Any]:
        """The variables that the optimizer was built with."""
        return self._trainable_variables

    def name_of(self, variable: Any) -> str:
        """The path of a variable, which unlike its name is its alone."""
        return getattr(variable, "path", variable.name)

    def dtype_of(self, variable: Any) -> str:
        """The dtype that a variable is stored in."""
        return backend.standardize_dtype(variable.dtype)

    def serialize_schedule(self, schedule: Any) -> Any:
        """A schedule as plain data."""
        return keras.saving.serialize_keras_object(schedule)

    @classmethod
    def deserialize_schedule(cls, data: Any, custom_objects: Any) -> Any:
        """The schedule that plain data describe."""
        return keras.saving.deserialize_keras_object(data, custom_objects=custom_objects)
