"""Which arrays may be parameters: what is refused, and why."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from isostep.engines.leaf import AnyArray
from isostep.errors import ParameterError
from isostep.stepper import DTYPES


def checked_params(named: dict[str, Any]) -> dict[str, AnyArray]:
    if not named:
        raise ParameterError("there are no parameters")
    for name, array in named.items():
        if not isinstance(array, np.ndarray):
            raise ParameterError(
                f"parameter {name!r} is {type(array).__name__}, not a NumPy array, and could not "
                f"be updated in place"
            )
        array = cast(AnyArray, array)
        if array.dtype.name not in DTYPES or not array.dtype.isnative:
            raise ParameterError(
                f"parameter {name!r} has dtype {array.dtype}: use one of {', '.join(DTYPES)} in "
                f"native byte order"
            )
        if not array.flags.writeable:
            raise ParameterError(
                f"parameter {name!r} is read-only and could not be updated in place: pass a copy"
            )
    _refuse_overlap(named)
    return named


def _refuse_overlap(named: dict[str, AnyArray]) -> None:
    spans = sorted(
        (*np.lib.array_utils.byte_bounds(a), name) for name, a in named.items() if a.size
    )
    reached: list[tuple[int, int, str]] = []
    for low, high, name in spans:
        reached = [s for s in reached if s[1] > low]
        for _, _, other in reached:
            if np.shares_memory(named[name], named[other]):
                raise ParameterError(
                    f"parameters {other!r} and {name!r} share memory: give each array once, under "
                    f"one name"
                )
        reached.append((low, high, name))
    for name, array in named.items():
        if _overlaps_itself(array):
            raise ParameterError(
                f"parameter {name!r} overlaps itself (broadcast, or sliding windows): pass a copy"
            )


def _overlaps_itself(array: AnyArray) -> bool:
    """Whether a step along some axis stays within what the shorter steps reach."""
    reach = array.itemsize
    for step, length in sorted(
        (abs(s), n) for s, n in zip(array.strides, array.shape, strict=True)
    ):
        if length > 1 and step < reach:
            return array.size > 0
        reach += step * (length - 1)
    return False
