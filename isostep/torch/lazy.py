"""Sparse gradients: their dense meaning where torch has one, or only the rows that they have.

A lazy step treats each row present as a tensor of its own, so that one call of the kernel steps all
of them; rows that are absent neither move nor decay. This is Paddle's `lazy_mode`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from isostep.compile.arrays import Array
from isostep.engines.cohort import Cohort
from isostep.engines.native import NativeRunner
from isostep.errors import GradientError
from isostep.stepper import Stepper
from isostep.torch.tensors import DTYPE_NAMES, numpy_view
from isostep.tracing import trace

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


def row_runner(
    stepper: Stepper, index: int, grad: torch.Tensor
) -> tuple[NativeRunner, torch.Tensor] | None:
    """A cohort of the rows of one parameter that a sparse gradient has; None if it has none.

    Args:
        stepper: whose leaf it is.
        index: place of the leaf.
        grad: sparse along its first axis; rows that stand in it twice are summed.

    Returns:
        The runner, and the rows of the gradient, which must live as long as the step.

    Raises:
        GradientError: the gradient is sparse along more axes, or the parameter's rows are not
            dense, or the rule keeps factors.
    """
    leaf = stepper.leaves[index]
    grad = grad.coalesce()
    if grad.sparse_dim() != 1 or leaf.staged or not leaf.in_order or leaf.factored_axes:
        raise GradientError(
            f"lazy=True: the gradient of {leaf.name!r} must be sparse along its first axis only, "
            f"the parameter dense, and the rule without factors"
        )
    rows = grad.indices()[0].numpy()
    values = grad.values().contiguous()
    if not len(rows) or not leaf.array.size:
        return None
    width = leaf.array.size // leaf.array.shape[0]
    names = {n: a for n, a in leaf.arrays.items() if a.size == leaf.array.size}
    arrays = [Array("grad", DTYPE_NAMES[values.dtype])]
    arrays += [Array(n, a.dtype.name) for n, a in names.items()]
    columns = [_addresses(numpy_view(values).reshape(-1), np.arange(len(rows)), width)]
    columns += [_addresses(a, rows, width) for a in names.values()]
    cohort = Cohort(
        trace(stepper.recipe(leaf)),
        arrays,
        "flat",
        [(1, 1, width)] * len(rows),
        np.full(len(rows), index),
        title=stepper.rule.name,
    )
    return NativeRunner(cohort, np.stack(columns, axis=1)), values


def _addresses(array: Any, rows: Any, width: int) -> Any:
    return array.ctypes.data + rows * (width * array.itemsize)
