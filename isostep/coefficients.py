"""The coefficients of a step, where tensors differ in group or step count.

Experts that are stepped now and then have as many step counts as there are experts. Their
coefficients are folded for all counts of a group at once, with the bits that each alone gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isostep.rules.base import SCALARS

Fold = Callable[[Any, int, Any, str], dict[str, Any]]
"""`(xp, group, t, dtype) -> coefficients`: of a group at a step count, for one dtype."""

FEW = 3  # counts up to which each is folded alone: an array has to be made, too


def _each(function: Callable[..., Any], operands: int) -> Callable[..., Any]:
    return np.frompyfunc(function, operands, 1)


class Each:
    """The namespace of coefficients that are arrays of Python numbers, or numbers.

    What NumPy does with such an array it does by the operations of the numbers themselves. Its own
    powers and logarithms of many numbers at once may differ in the last bit.
    """

    sqrt = staticmethod(_each(math.sqrt, 1))
    log = staticmethod(_each(math.log, 1))
    expm1 = staticmethod(_each(math.expm1, 1))
    minimum = staticmethod(_each(min, 2))
    maximum = staticmethod(_each(max, 2))
    where = staticmethod(_each(SCALARS.where, 3))


EACH = Each()


class Folded:
    """The coefficients of one step, each folded once.

    Args:
        fold: folds them.
    """

    def __init__(self, fold: Fold) -> None:
        self._fold = fold
        self._alone: dict[tuple[int, int, str], dict[str, Any]] = {}

    def alone(self, group: int, t: int, dtype: str) -> dict[str, Any]:
        """Those of one group at one step count: numbers."""
        key = group, t, dtype
        if key not in self._alone:
            self._alone[key] = self._fold(SCALARS, group, float(t), dtype)
        return self._alone[key]

    def of(
        self, groups: NDArray[np.int64], counts: NDArray[np.int64], dtype: str
    ) -> dict[str, Any]:
        """Those of some tensors: numbers where all agree, else arrays over the tensors.

        Args:
            groups: the group of each.
            counts: the step count of each, 1 at its first step.
            dtype: that of the parameters.
        """
        present = np.unique(groups)
        if len(present) == 1:
            return self._of_group(int(present[0]), counts, dtype)
        found: dict[str, Any] = {}
        for group in present.tolist():
            inside = groups == group
            for name, value in self._of_group(group, counts[inside], dtype).items():
                found.setdefault(name, np.zeros(len(groups)))[inside] = value
        return found

    def _of_group(self, group: int, counts: NDArray[np.int64], dtype: str) -> dict[str, Any]:
        different, place = np.unique(counts, return_inverse=True)
        if len(different) == 1:
            return self.alone(group, int(different[0]), dtype)
        values = self._together(group, different, dtype) if len(different) > FEW else None
        if values is None:
            each = [self.alone(group, t, dtype) for t in different.tolist()]
            values = {name: np.array([c[name] for c in each]) for name in each[0]}
        return {n: v[place] if isinstance(v, np.ndarray) else v for n, v in values.items()}

    def _together(self, group: int, counts: NDArray[np.int64], dtype: str) -> dict[str, Any] | None:
        """Those of one group at some step counts; None if the rule's function takes one at a time,
        as one does that has an `if` on the count."""
        try:
            found = self._fold(EACH, group, counts.astype(np.float64).astype(object), dtype)
            values = {n: np.asarray(v, dtype=np.float64) for n, v in found.items()}
        except Exception:  # whatever it does with a number and cannot with an array
            return None
        if any(v.shape not in ((), counts.shape) for v in values.values()):
            return None
        return {n: v if v.ndim else float(v) for n, v in values.items()}
