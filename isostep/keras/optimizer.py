"""The step that replaces Keras': one fused pass over all variables of a model."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import keras
from keras import backend
from keras.src.backend.common.stateless_scope import in_stateless_scope  # has no public name

from isostep import extension
from isostep.engines.threads import HOST, Crew
from isostep.errors import HyperparameterError
from isostep.keras.traced import TracedApply
from isostep.keras_api import Absent, FusedOptimizer
from isostep.lock import Lock
from isostep.plan import Plan
from isostep.report import Report
from isostep.stepper import Engine

OWN_STEP = "Keras' own step"
"""What `ran` and the plan say where nothing of isostep's runs."""


class FusedApply(FusedOptimizer):
    """The fused step, for a class of keras.optimizers that follows it in the bases."""

    dialect: ClassVar[str] = "keras"

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # On torch Keras would make another class's instance where this one stands in Keras' place.
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings: tuple[Any, ...] = ()
        self._applies: TracedApply | None = None
        self._took_own_step = False
        self._lock = Lock()

    def build(self, variables: list[Any]) -> None:
        """Make the variables of the optimizer: Keras' own, and the statistics of a report."""
        if self.built:
            return
        self.refuse_overridden()  # what is wrong is said before anything is made
        if not self.overridden:
            self.hyper_groups(variables)
        super().build(variables)
        self.add_statistics()
        with self.concretely():  # not as a part of a step that is being compiled
            self.take_waiting()

    # -- what Keras calls ------------------------------------------------------------------------

    def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        """Step the variables; an exception from outside leaves that done or not begun.

        Args:
            grads: one for each variable, or None.
            trainable_variables: default: those that the optimizer was built with.
        """
        # Only torch's memory can be written by two threads, and replicas of TensorFlow's strategies
        # are threads that wait for each other.
        with self._lock if backend.backend() == "torch" else contextlib.nullcontext():
            before = self._count()
            if self._applies is not None:
                self._applies.stepped = False
            try:
                return super().apply(grads, trainable_variables)
            except BaseException:
                self._end_step(before)
                raise

    def _count(self) -> Any:
        """The steps so far, as a number or an array that later steps leave as it is, of which
        nothing waits for the value; None where a step is traced, or is one of several replicas'."""
        if in_stateless_scope():
            return None
        if backend.backend() == "torch":
            return int(self._iterations._value)
        if backend.backend() == "jax":
            return self._iterations._value
        import tensorflow as tf

        if not tf.executing_eagerly() or tf.distribute.has_strategy():
            return None
        return self._iterations._value.read_value()

    def _end_step(self, before: Any) -> None:
        """What Keras does after a step, if the step is done and Keras has not come to it.

        Args:
            before: what `_count` gave before.
        """
        if before is None or self._applies is None or not self._applies.stepped:
            return
        if int(self._count()) == int(before):
            for variable in self._trainable_variables:
                if variable.constraint is not None:
                    variable.assign(variable.constraint(variable))
            self._iterations.assign(before + 1)

    def _backend_apply_gradients(self, grads: Any, trainable_variables: Any) -> None:
        self.take_waiting()
        why = self._why_own_step(trainable_variables)
        self._took_own_step = bool(why)
        if why:
            self.refuse_extras(why)
            super()._backend_apply_gradients(grads, trainable_variables)
        else:
            self._fused_step().apply(list(grads), list(trainable_variables))

    def _backend_update_step(
        self, grads: Any, trainable_variables: Any, learning_rate: Any
    ) -> None:
        """In Keras' own step: all variables at once on torch, one by one in a user's subclass."""
        if type(self) is extension.drop_in_of(type(self)):
            super()._backend_update_step(grads, trainable_variables, learning_rate)
        else:
            keras.optimizers.Optimizer._backend_update_step(
                self, grads, trainable_variables, learning_rate
            )

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Step one variable by its rule alone, without clipping, decay or average.

        Args:
            gradient: as for `apply`.
            variable: one that the optimizer was built with.
            learning_rate: a number or a scalar tensor.

        Raises:
            HyperparameterError: the optimizer was not built yet.
            ValueError: the variable is not one that it was built with.
        """
        if not self.built:
            raise HyperparameterError(
                "update_step() needs variables: call optimizer.build(variables)"
            )
        if self.overridden:
            super().update_step(gradient, variable, learning_rate)
            return
        self._check_variables_are_known([variable])
        self._fused_step().update(gradient, variable, learning_rate)

    def _why_own_step(self, variables: Any) -> str:
        """What makes a step Keras' own, in words; else nothing."""
        if self.overridden:
            self._refuse_late(self.overridden)
            return f"with {', '.join(self.overridden)} overridden"
        if len({self._var_key(v) for v in variables}) < len(variables):
            return "with the same variable twice in one call"
        if self.gradient_accumulation_steps and self._merges():
            return "with gradient_accumulation_steps on several replicas"
        return ""

    def _refuse_late(self, overridden: Sequence[str]) -> None:
        if any(isinstance(v, Absent) for v in self._variables):
            raise HyperparameterError(
                f"{', '.join(overridden)}: overridden after the optimizer was built, without a "
                f"variable that Keras' own step reads; override it before build()"
            )

    def _merges(self) -> bool:
        """Whether TensorFlow can bring several replicas together here, in a condition."""
        strategy = getattr(self, "_distribution_strategy", None)
        if strategy is None or strategy.num_replicas_in_sync == 1:
            return False
        import tensorflow as tf

        return tf.executing_eagerly()

    # -- the optimizer's variables ---------------------------------------------------------------

    def add_absent(self, reference: Any, name: str) -> Absent:
        """Leave the place of a variable of Keras', of the shape of one of the model's.

        Args:
            reference: the model's variable.
            name: what Keras calls it.
        """
        made = self._absent_class()(reference.shape, self.dtype_of(reference), name)
        self._variables.append(made)  # checkpoints of TensorFlow and `set_weights` go by place
        return made

    def _absent_class(self) -> type[Absent]:
        if backend.backend() == "tensorflow":
            from isostep.keras.on_tensorflow import AbsentVariable

            return AbsentVariable
        return Absent

    @property
    def variables(self) -> list[Any]:
        """The optimizer's variables: those of saved states, without what isostep does not keep."""
        found: list[Any] = super().variables
        return found if self._extras.storing else [v for v in found if not isinstance(v, Absent)]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the optimizer's variables.

        Args:
            weights: arrays or variables in the order of `variables`, this optimizer's or those of
                Keras' own class.

        Raises:
            StateError: they are as many as neither, or of other shapes; nothing was changed.
            ValueError: the optimizer was not built yet.
        """
        if not self.built:
            super().set_weights(weights)
        with self._storing() as variables:
            found: list[Any] = variables
        if len(weights) != len(found):
            found = [v for v in found if not isinstance(v, Absent)]
        self._take(found, weights)

    # -- what runs -------------------------------------------------------------------------------

    def _fused_step(self) -> TracedApply:
        """The fused step, made again if a setting has changed."""
        settings = self.settings()
        if self._applies is None or settings != self._settings:
            self._settings, self._applies = settings, self._engine()
        return self._applies

    def settings(self) -> tuple[Any, ...]:
        """What decides about steps and can be set at any time."""
        return (*super().settings(), self.gradient_accumulation_steps)

    def _engine(self) -> TracedApply:
        if backend.backend() == "torch":
            from isostep.keras.on_torch import NativeApply

            return NativeApply(self)
        if backend.backend() == "tensorflow":
            from isostep.keras.on_tensorflow import TensorFlowApply

            return TensorFlowApply(self)
        return TracedApply(self)

    @property
    def ran(self) -> list[str]:
        """What ran in the last step: engine, layout and dtype of each kernel, or the backend."""
        if self._took_own_step:
            return [OWN_STEP]
        return [] if self._applies is None else self._applies.ran

    def plan(self) -> Plan:
        """What a step will do: groups, slots, bytes and kernels of each variable; nothing runs.

        Raises:
            HyperparameterError: the optimizer was not built yet.
        """
        planned = super().plan()
        return planned.left_to(OWN_STEP) if self.overridden else planned

    @property
    def report(self) -> Report | None:
        """What the last step measured, if the optimizer was made with `report=True`.

        Reading it waits for the step.
        """
        measured = None if self._applies is None else self._applies.measured
        return super().report if measured is None else measured

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """As Keras' own, whose documentation asks for it before `build`; later ones act, too.

        Args:
            var_list: variables that do not decay.
            var_names: regular expressions, searched for in the names of variables.

        Raises:
            HyperparameterError: the optimizer is built and reports, by groups that would change.
        """
        if self.built and self._extras.report:
            raise HyperparameterError(
                "exclude_from_weight_decay() after build() goes with no report=True, whose groups "
                "are known since then: call it before build()"
            )
        super().exclude_from_weight_decay(var_list, var_names)

    # -- what FusedOptimizer asks ----------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """What runs a step."""
        return "native" if backend.backend() == "torch" else "array"

    @property
    def crew(self) -> Crew:
        """The threads that kernels run on."""
        if backend.backend() != "torch":
            return HOST
        from isostep.torch.crew import CREW

        return CREW

    def concretely(self) -> AbstractContextManager[Any]:
        """A context in which arrays have values, also while a step is traced."""
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
