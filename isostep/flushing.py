"""When a kernel may flush to zero what is smaller than the smallest normal number.

Denormal numbers slow a processor down, and slots decay to them. Flushed, a number
changes by less than the smallest normal one, tau: that shows where something is divided by it, or
where only its sign counts, and is lost in rounding where an epsilon is added first. A rule says
which of its coefficients do that (`Rule.guards`); they must be so large that the error of what
stands beside them is less than a quarter of the unit roundoff, relative to them. Without guards
nothing is flushed if the rule divides, or compares, what it computes from arrays.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from isostep.compile.arrays import Array, compute_dtype
from isostep.compile.trace import Symbol
from isostep.recipe import Recipe
from isostep.rules.base import Guard, Guards
from isostep.tracing import trace

_SMALLEST = {"float64": -1022, "float32": -126}  # as powers of two
_ROUNDOFF = {"float64": -53, "float32": -24}
_MARGIN = 2
_COMPARISONS = ("gt", "ge")

# The norm of many elements has the error of all of them. A bound of twice that of one is felt from
# 2^30 elements on, if each is as large as can be flushed.
_NORM = Guard("clip_threshold", power=0.5)
_VALUE = Guard("clip_threshold")


class Bound(NamedTuple):
    """A coefficient, and how large it must be at least."""

    coefficient: str
    least: float


Bounds = tuple[tuple[Bound, ...], ...]


@functools.cache
def guards(recipe: Recipe) -> Guards | None:
    """What keeps a step of `recipe` from feeling that something was flushed.

    Returns:
        Groups of guards, in each of which one must do; None if there are none that could.
    """
    if recipe.idle:
        return ()
    rule = replace(recipe, clip=None, nonfinite="propagate", report=False, average=False)
    computed = list(_of_arrays(trace(replace(rule, overwrite=False)).graph.nodes))
    compared = {node for node in computed if node.op in _COMPARISONS}
    if any(node.op == "sign" or _jumps(node, compared) for node in computed):
        return None
    found: Guards = ()
    if any(node.op == "div" for node in computed):
        if recipe.rule.guards is None:
            return None
        found = recipe.rule.guards(recipe.o)
    if recipe.clip is not None:
        found = (*found, (_VALUE if recipe.clip == "value" else _NORM,))
    return found


def _of_arrays(nodes: Iterable[Symbol]) -> Iterable[Symbol]:
    """The operations on what was computed from arrays, and not from coefficients alone."""
    known: set[Symbol] = set()
    for node in nodes:
        if any(arg in known for arg in node.args):
            known.add(node)
            yield node
        elif node.op == "input" and not node.is_host:
            known.add(node)


def _jumps(node: Symbol, compared: set[Symbol]) -> bool:
    """Whether it depends on a comparison, and is not the larger of the two numbers compared."""
    if not any(arg in compared for arg in node.args):
        return False
    condition, *chosen = node.args
    same = len(chosen) == 2 and all(a is b for a, b in zip(condition.args, chosen, strict=False))
    return node.op != "where" or condition not in compared or not same


def bounds(needed: Guards | None, arrays: list[Array]) -> Bounds | None:
    """How large guards must be.

    Args:
        needed: what `guards` found.
        arrays: what a step reads and writes. Of two dtypes the one with fewer exponents counts;
            denormal numbers of float16 are none of the arithmetic's.
    """
    if needed is None:
        return None
    narrow = any(a.dtype in ("float32", "bfloat16") for a in arrays)
    dtype = "float32" if narrow else compute_dtype(arrays)
    return tuple(tuple(_bound(guard, dtype) for guard in group) for group in needed)


def _bound(guard: Guard, dtype: str) -> Bound:
    exponent = guard.power * _SMALLEST[dtype] - _ROUNDOFF[dtype] + _MARGIN
    return Bound(guard.coefficient, 2.0 ** (exponent / guard.degree))


def unfelt(needed: Bounds | None, coefficients: Mapping[str, Any]) -> bool:
    """Whether a step with these coefficients may flush.

    Args:
        needed: what `bounds` found.
        coefficients: by name, each a number or an array over tensors.
    """
    if needed is None:
        return False
    for group in needed:  # asked in every step
        for name, least in group:
            value = coefficients[name]
            if (value.min() if isinstance(value, np.ndarray) else value) >= least:
                break
        else:
            return False
    return True
