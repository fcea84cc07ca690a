"""The moving average, shared by every rule and recipe that keeps one."""

from __future__ import annotations

from typing import Any


def toward(xp: Any, average: Any, value: Any, weight: Any) -> Any:
    """`average` after it has moved by `weight`, in [0, 1], of its distance to `value`.

    It starts at the nearer end, so that it does not keep the rounding of a far larger number that
    it has left behind. One weight, not two: in float32 0.9 and 0.1 do not add up to 1, and an
    average that feeds on itself would drift.
    """
    distance = value - average
    return xp.where(weight > 0.5, value - (1.0 - weight) * distance, average + weight * distance)
