"""The step that replaces tf_keras': one fused pass over all variables of a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import tensorflow as tf

from isostep.errors import HyperparameterError
from isostep.tf_keras import gradients
from isostep.tf_keras import mesh as meshes
from isostep.tf_keras.step import FusedStep
from isostep.tf_keras.variables import OptimizerVariables, schedules


class FusedApply(OptimizerVariables):
    """The fused step, for a class of tf_keras.optimizers that follows it in the bases."""

    dialect: ClassVar[str] = "tf_keras"
    lazy: bool

    def __init__(self, *args: Any, lazy: bool = False, **kwargs: Any) -> None:
        self.lazy = bool(lazy)
        super().__init__(*args, **kwargs)
        own = {k: v for k, v in kwargs.items() if k in self.keras_signature.parameters}
        given = self.keras_signature.bind_partial(*args, **own).arguments
        self._their_jit_compile = self.jit_compile
        if not self.overridden:
            # tf_keras forgets it where there is no GPU.
            self.jit_compile = bool(given.get("jit_compile", True))
        self._says_why = "jit_compile" in given and self.jit_compile
        self._step: FusedStep | None = None
        self._own_step = self._fusing = False
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
        if not self._run_with_dtensor:
            meshes.check(variables, self._mesh)
        self.refuse_overridden()  # what is wrong is said before anything is made
        if self.steps_as_tf_keras:
            super().build(variables)
        else:
            self.hyper_groups(variables)
            super().build(variables)
            self._step = FusedStep(self, variables, say_why=self._says_why)
            self.add_statistics()
        self.take_waiting()

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, Any]],
        name: str | None = None,
        skip_gradients_aggregation: bool = False,
        **kwargs: Any,
    ) -> Any:
        """One step of the variables that have a gradient.

        Args:
            grads_and_vars: pairs of a gradient and its variable. A gradient is a tensor,
                `tf.IndexedSlices`, or what `tf.convert_to_tensor` takes; or None. A variable that
                comes twice is stepped twice, by tf_keras' own step.
            name: name scope of the step.
            skip_gradients_aggregation: gradients were summed over replicas already.
            kwargs: `experimental_aggregate_gradients`, the reverse of it.

        Returns:
            The number of steps, a variable.

        Raises:
            HyperparameterError: a variable comes twice, and options of isostep are used.
            KeyError: the optimizer was built for other variables.
            ValueError: no variable has a gradient.
        """
        if self.built:
            self.take_waiting()
        pairs = [(gradients.as_tensor(g, v), v) for g, v in grads_and_vars]
        stepped = [id(v) for g, v in pairs if g is not None]
        rest = (name, skip_gradients_aggregation)
        if self.overridden or (self._fuses and len(set(stepped)) < len(stepped)):
            return self._apply_as_tf_keras(pairs, *rest, **kwargs)
        try:
            self._fusing = self._fuses
            return super().apply_gradients(pairs, *rest, **kwargs)
        finally:
            self._fusing = False

    def _apply_as_tf_keras(self, *args: Any, **kwargs: Any) -> Any:
        """`apply_gradients` of tf_keras' own class."""
        why = f"with {', '.join(self.overridden)} overridden"
        self.refuse_extras(why if self.overridden else "where a variable comes twice in one call")
        fused_jit_compile = self.jit_compile
        try:
            self._own_step = True
            self.jit_compile = fused_jit_compile and self._their_jit_compile
            self.fill_absent()
            return super().apply_gradients(*args, **kwargs)
        finally:
            self._own_step, self.jit_compile = False, fused_jit_compile

    # The fused step does these itself; whoever else calls them gets what tf_keras does.

    def _clip_gradients(self, grads: Any) -> Any:
        return grads if self._fusing else super()._clip_gradients(grads)

    def _deduplicate_sparse_grad(self, grads: Any) -> Any:
        return grads if self._fusing else super()._deduplicate_sparse_grad(grads)

    def _apply_weight_decay(self, variables: Any) -> None:
        if not self._fusing:
            super()._apply_weight_decay(variables)

    def _internal_apply_gradients(self, grads_and_vars: Any) -> Any:
        if self._mesh is None or not self._fusing:
            # tf_keras calls `_distributed_apply_gradients_fn` where it should.
            return super()._internal_apply_gradients(grads_and_vars)
        self._now().step(*zip(*grads_and_vars, strict=True))
        return self.iterations.assign_add(1)

    def _distributed_apply_gradients_fn(
        self, distribution: Any, grads_and_vars: Any, **kwargs: Any
    ) -> Any:
        if not self._fusing:
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

        Raises:
            HyperparameterError: the optimizer was not built yet.
            KeyError: it was built for other variables.
        """
        if self.steps_as_tf_keras:
            return super().update_step(gradient, variable)
        if not self.built:
            raise HyperparameterError(
                f"update_step needs the optimizer's variables: call optimizer.build(variables) "
                f"first, with {variable.name!r} among them; or call apply_gradients"
            )
        return self._now().update(gradient, variable)

    @property
    def steps_as_tf_keras(self) -> bool:
        """Whether the step is tf_keras' own: a method of it was overridden, or this call has a
        variable twice."""
        return self._own_step or bool(self.overridden)

    @property
    def _fuses(self) -> bool:
        """Whether all variables are stepped at once: not where a strategy keeps each of them in a
        place of its own."""
        if self.steps_as_tf_keras:
            return False
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

    @property
    def extras_used(self) -> list[str]:
        """The options of isostep that differ from their defaults."""
        return [*super().extras_used, *["lazy"] * self.lazy]

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
