"""A step in a dynamic graph by Paddle's operations: for tensors that no kernel takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from isostep.extension import Cause
from isostep.paddle.binding import Roster
from isostep.paddle.grad_mode import unrecorded
from isostep.paddle.gradients import check_shapes
from isostep.paddle.own_step import of_power
from isostep.paddle.powers import Powers
from isostep.paddle.program import ArrayStep
from isostep.report import Report
from isostep.rules import Rule


class Arrays:
    """One step of some parameters of one optimizer.

    Args:
        optimizer: the optimizer, which has their accumulators.
        rule: its rule.
        own: the parameters, and their groups.
        grads: their gradients.

    Raises:
        GradientError: a gradient has another shape than its parameter.
        StateError: an accumulator is not what its parameter needs.
        RuntimeError: a gradient has rows only, and Paddle refuses it; Paddle's error.
    """

    def __init__(self, optimizer: Any, rule: Rule, own: Roster, grads: Sequence[Any]) -> None:
        check_shapes(own.params, grads)
        if any(grad.is_selected_rows() for grad in grads):
            optimizer.check_rows()
        self._optimizer, self._own = optimizer, own
        pairs = list(zip(own.params, grads, strict=True))
        self._made = ArrayStep(optimizer, rule, pairs, own.owners)
        self._made.check()
        self._powers = Powers(optimizer, own.params, self._made.values_of_each)
        known = optimizer.steps()
        counts = [known.get(param.name, 0) for param in own.params]
        self._counts = np.array(counts, dtype=np.int64)

    def powers_of_no_count(self) -> Cause | None:
        """Count as Paddle's powers say; if they are those of no count, the step is Paddle's own."""
        place = self._powers.follow(self._counts)
        return None if place is None else of_power(self._own.params[place])

    def step(self, own: Roster, grads: Sequence[Any]) -> Report | None:
        """The step, of what this was made for."""
        optimizer, names = self._optimizer, [param.name for param in self._own.params]
        after = self._counts + 1
        counts = dict(zip(names, after.tolist(), strict=True))
        iteration, skipped = optimizer.iteration, optimizer.skipped

        def settle() -> None:
            self._powers.write(after)
            optimizer.count(counts, iteration + 1, skipped)

        before = dict(zip(names, self._counts.tolist(), strict=True))
        done, report = unrecorded(self._made.now)(iteration, before, settle)
        if not done:
            optimizer.count({}, iteration, skipped + 1)
        optimizer.ran_without_kernels = "array code, paddle"
        return report
