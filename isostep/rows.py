"""Steps of some rows of a parameter: what a lazy optimizer does with a sparse gradient.

Each row present is treated as a tensor of its own, so that one call of the kernel steps all of
them; rows that are absent neither move nor decay. This is Paddle's `lazy_mode`. A moving average is
another matter: it goes on for all rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from isostep import flushing
from isostep.compile.arrays import Array
from isostep.engines.cohort import Cohort
from isostep.engines.leaf import AnyArray, Leaf
from isostep.engines.native import NativeRunner
from isostep.stepper import Stepper
from isostep.tracing import trace, works_by_element


def obstacle(stepper: Stepper, leaf: Leaf) -> str:
    """Why the rows of a parameter cannot be stepped on their own, in words; else nothing."""
    if leaf.staged or not leaf.in_order:
        return "the parameter's rows do not lie one after the other in memory"
    if not works_by_element(stepper.recipe(leaf)):
        return f"{stepper.rule.name} looks at a parameter as a whole"
    return ""


def row_runner(stepper: Stepper, index: int, rows: Any, values: AnyArray) -> NativeRunner | None:
    """A cohort of the rows that a sparse gradient has.

    Args:
        stepper: whose parameter it is.
        index: place of the leaf.
        rows: the rows, each once.
        values: their gradients, contiguous; must live as long as the step.

    Returns:
        The cohort; None if there are no rows.
    """
    leaf = stepper.leaves[index]
    if not len(rows) or not leaf.size:
        return None
    recipe = stepper.recipe(leaf)
    if recipe.average and stepper.dialect.averaging.without_gradient:
        recipe = replace(recipe, average=False, overwrite=False)  # all rows follow, idle
    width = leaf.size // leaf.shape[0]
    arrays = [Array("grad", values.dtype.name)]
    arrays += [Array(n, a.dtype.name) for n, a in leaf.arrays.items()]
    columns = [_addresses(values.reshape(-1), np.arange(len(rows)), width)]
    columns += [_addresses(a, np.asarray(rows), width) for a in leaf.arrays.values()]
    cohort = Cohort(
        trace(recipe),
        arrays,
        "flat",
        [(1, 1, width)] * len(rows),
        np.full(len(rows), index),
        title=stepper.rule.name,
        guards=flushing.guards(recipe),
    )
    return NativeRunner(cohort, np.stack(columns, axis=1), stepper.crew)


def _addresses(array: AnyArray, rows: Any, width: int) -> Any:
    return array.ctypes.data + rows * (width * array.itemsize)
