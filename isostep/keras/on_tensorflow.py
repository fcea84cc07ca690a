"""`apply` on Keras' TensorFlow backend: array code, once on each device of a strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from isostep.functional import NO_CLIP
from isostep.keras.gradients import dense
from isostep.keras.traced import TracedApply


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
                "gradient_accumulation_steps is not possible under a strategy with several "
                "replicas: TensorFlow merges replicas outside of conditions only; leave it out, "
                "or accumulate in the training loop"
            )
        # As Keras does: each replica bounds its own gradient, and the sum of them is not bounded.
        clipped = optimizer._clip_gradients(list(grads))
        mirrored = [v.value for v in variables]
        summed = optimizer._all_reduce_sum_gradients(list(zip(clipped, mirrored, strict=True)))
        tf.__internal__.distribute.interim.maybe_merge_call(
            self._everywhere, strategy, [g for g, _ in summed], [self._index(v) for v in variables]
        )

    def _everywhere(self, strategy: Any, grads: list[Any], places: list[int]) -> None:
        def here(_: Any, *local: Any) -> None:
            given = {k: dense(g) for k, g in zip(places, local, strict=True)}
            self._step(self._function.tasks(given, NO_CLIP))

        first = self._variable(self._function.stepper.leaves[places[0]], "param")
        strategy.extended.update(first.value, here, args=tuple(grads), group=False)
