"""`apply` on Keras' TensorFlow backend: array code, once on each device of a strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from isostep.functional import NO_CLIP
from isostep.keras.gradients import dense
from isostep.keras.traced import TracedApply
from isostep.keras_api import Absent

Trackable: Any = tf.__internal__.tracking.Trackable


class AbsentVariable(Trackable, Absent):
    """An `Absent` that has its place in TensorFlow's checkpoints as well."""

    def _serialize_to_tensors(self) -> dict[str, Any]:
        return {"VARIABLE_VALUE": tf.zeros(self.shape, self.dtype)}

    @tf.autograph.experimental.do_not_convert
    def _restore_from_tensors(self, restored_tensors: Any) -> None:
        """Take nothing."""


class TensorFlowApply(TracedApply):
    """Steps the variables of one optimizer, mirrored or not."""

    @tf.autograph.experimental.do_not_convert
    def apply(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        """One step of `variables`; those without gradient are not among them."""
        optimizer = self._optimizer
        strategy = optimizer._distribution_strategy
        if strategy.num_replicas_in_sync == 1:
            super().apply(grads, variables)
            return
        if self._accumulates:
            raise ValueError(
                "gradient_accumulation_steps is not possible in a compiled step of several "
                "replicas: TensorFlow merges replicas outside of conditions only; leave it out, "
                "or accumulate in the training loop"
            )
        # As Keras does: each replica bounds its own gradient, and the sum of them is not bounded.
        clipped = optimizer._clip_gradients(list(grads))
        mirrored = [_of_tensorflow(v) for v in variables]
        summed = optimizer._all_reduce_sum_gradients(list(zip(clipped, mirrored, strict=True)))
        tf.__internal__.distribute.interim.maybe_merge_call(
            self._everywhere, strategy, [g for g, _ in summed], [self._index(v) for v in variables]
        )

    def _everywhere(self, strategy: Any, grads: list[Any], places: list[int]) -> None:
        def here(_: Any, *local: Any) -> None:
            pairs = zip(places, local, strict=True)
            given = {k: dense(g, self._parameter(k)) for k, g in pairs}
            self._step(self._function.tasks(given, NO_CLIP))

        first = _of_tensorflow(self._parameter(places[0]))
        strategy.extended.update(first, here, args=tuple(grads), group=False)

    def _parameter(self, place: int) -> Any:
        return self._variable(self._function.stepper.leaves[place], "param")


def _of_tensorflow(variable: Any) -> Any:
    """TensorFlow's variable: Keras' optimizers also take those that are not in one of its own."""
    return variable.value if isinstance(variable, keras.Variable) else variable
