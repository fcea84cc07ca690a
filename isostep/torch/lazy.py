"""torch's sparse gradients: their dense meaning where torch has one, or only their rows."""

from __future__ import annotations

from typing import Any

import torch

from isostep.engines.cohort import Runner
from isostep.engines.leaf import Leaf
from isostep.errors import GradientError
from isostep.rows import obstacle, row_runner
from isostep.stepper import Stepper
from isostep.torch.tensors import numpy_view

SPARSE_RULES = ("SGD", "Adagrad")
"""The rules whose torch classes take sparse gradients."""


def densified(grad: torch.Tensor, rule: str, weight_decay: Any, by_element: bool) -> torch.Tensor:
    """The dense gradient that a sparse one stands for; torch's errors where torch refuses it."""
    if rule not in SPARSE_RULES:
        way_out = "make it with lazy=True to step the rows that are present"
        raise RuntimeError(
            f"{rule} does not support sparse gradients: "
            f"{way_out if by_element else 'pass grad.to_dense()'}"
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
        self.empty: list[int] = []
        """Places of the parameters whose gradient has no rows, which is a step all the same."""

    def split(self, grads: list[Any]) -> list[Runner]:
        """Cohorts for the sparse ones, whose place in `grads` becomes None."""
        runners: list[Runner] = []
        self.empty = []
        for k, g in enumerate(grads):
            if g is not None and g.is_sparse:
                grads[k] = None
                runner = self._runner(k, g.detach().coalesce())
                if runner is None:
                    self.empty.append(k)
                else:
                    runners.append(runner)
        return runners

    def release(self) -> None:
        """Hold no gradient after the step."""
        self._values = []

    def _runner(self, index: int, grad: torch.Tensor) -> Runner | None:
        """The rows of one parameter; None if the gradient has none.

        Args:
            index: place of the leaf.
            grad: coalesced: rows that stand in it twice are summed.

        Raises:
            GradientError: rows cannot be stepped on their own.
        """
        self._check(self._stepper.leaves[index], grad)
        values = grad.values().resolve_conj().contiguous()
        self._values.append(values)  # must live as long as the step
        return row_runner(self._stepper, index, grad.indices()[0].numpy(), numpy_view(values))

    def _check(self, leaf: Leaf, grad: torch.Tensor) -> None:
        why = obstacle(self._stepper, leaf)
        if grad.sparse_dim() != 1:
            why = f"it is sparse along {grad.sparse_dim()} axes"
        if why:
            raise GradientError(
                f"lazy=True: the sparse gradient of {leaf.name!r} cannot be stepped row by row: "
                f"{why}; pass grad.to_dense()"
            )
