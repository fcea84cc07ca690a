"""Sparse gradients: their dense meaning where torch has one, or only the rows that they have.

A lazy step treats each row present as a tensor of its own, so that one call of the kernel steps all
of them; rows that are absent neither move nor decay. This is Paddle's `lazy_mode`. A moving average
is another matter: it goes on for all rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from isostep.compile.arrays import Array
from isostep.engines.cohort import Cohort, Runner
from isostep.engines.leaf import Leaf
from isostep.engines.native import NativeRunner
from isostep.errors import GradientError
from isostep.stepper import Stepper
from isostep.torch.tensors import DTYPE_NAMES, numpy_view
from isostep.tracing import trace, works_by_element

SPARSE_RULES = ("SGD", "Adagrad")
"""The rules whose torch classes take sparse gradients."""


def densified(grad: torch.Tensor, rule: str, weight_decay: Any) -> torch.Tensor:
    """The dense gradient that a sparse one stands for; torch's errors where torch refuses it."""
    if rule not in SPARSE_RULES:
        raise RuntimeError(
            f"{rule} does not support sparse gradients: make it with lazy=True to step the rows "
            f"that are present"
        )
    if rule == "Adagrad" and weight_decay:
        raise RuntimeError(
            "weight_decay option is not compatible with sparse gradients: make the optimizer with "
            "lazy=True, where only the rows present decay"
        )
    return grad.to_dense()


class RowRunners:
    """The sparse gradients of a lazy optimizer.

    Args:
        stepper: whose leaves they belong to.
    """

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._values: list[torch.Tensor] = []
        self._empty: list[int] = []

    def split(self, grads: list[Any]) -> list[Runner]:
        """Cohorts for the sparse ones, whose place in `grads` becomes None."""
        runners: list[Runner] = []
        self._empty = []
        for k, g in enumerate(grads):
            if g is not None and g.is_sparse:
                grads[k] = None
                runner = self._runner(k, g.detach().coalesce())
                if runner is None:
                    self._empty.append(k)
                else:
                    runners.append(runner)
        return runners

    def count_empty(self) -> None:
        """A gradient without rows is a step all the same."""
        self._stepper.steps[self._empty] += 1

    def release(self) -> None:
        """Hold no gradient after the step."""
        self._values = []

    def _runner(self, index: int, grad: torch.Tensor) -> NativeRunner | None:
        """The rows of one parameter; None if the gradient has none.

        Args:
            index: place of the leaf.
            grad: coalesced: rows that stand in it twice are summed.

        Raises:
            GradientError: rows cannot be stepped on their own.
        """
        leaf = self._stepper.leaves[index]
        recipe = self._stepper.recipe(leaf)
        if recipe.average and self._stepper.dialect.averaging.without_gradient:
            recipe = replace(recipe, average=False, overwrite=False)  # all rows follow, idle
        self._check(leaf, grad)
        rows = grad.indices()[0].numpy()
        values = grad.values().resolve_conj().contiguous()
        if not len(rows) or not leaf.array.size:
            return None
        self._values.append(values)  # must live as long as the step
        width = leaf.array.size // leaf.array.shape[0]
        arrays = [Array("grad", DTYPE_NAMES[values.dtype])]
        arrays += [Array(n, a.dtype.name) for n, a in leaf.arrays.items()]
        columns = [_addresses(numpy_view(values).reshape(-1), np.arange(len(rows)), width)]
        columns += [_addresses(a, rows, width) for a in leaf.arrays.values()]
        cohort = Cohort(
            trace(recipe),
            arrays,
            "flat",
            [(1, 1, width)] * len(rows),
            np.full(len(rows), index),
            title=self._stepper.rule.name,
        )
        return NativeRunner(cohort, np.stack(columns, axis=1))

    def _check(self, leaf: Leaf, grad: torch.Tensor) -> None:
        if grad.sparse_dim() != 1:
            why = f"it is sparse along {grad.sparse_dim()} axes"
        elif leaf.staged or not leaf.in_order:
            why = "the parameter's rows do not lie one after the other in memory"
        elif not works_by_element(self._stepper.recipe(leaf)):
            why = f"{self._stepper.rule.name} looks at a parameter as a whole"
        else:
            return
        raise GradientError(
            f"lazy=True: the sparse gradient of {leaf.name!r} cannot be stepped row by row: {why}; "
            f"pass grad.to_dense()"
        )


def _addresses(array: Any, rows: Any, width: int) -> Any:
    return array.ctypes.data + rows * (width * array.itemsize)
