"""The gradients of one step: checked, dense, and by address."""

from __future__ import annotations

import sys
from typing import Any, cast

import numpy as np

from isostep.engines.cohort import Runner
from isostep.engines.headers import Arrivals
from isostep.engines.leaf import AnyArray, Leaf
from isostep.engines.native import NativeRunner
from isostep.errors import GradientError
from isostep.numpy.memory import Memory, has_memory
from isostep.numpy.params import behaves
from isostep.stepper import DTYPES, as_dtype


class Gradients:
    """The gradients of one step: checked, dense, and by address.

    Args:
        leaves: the parameters.
        memory: what a step writes to.
    """

    def __init__(self, leaves: list[Leaf], memory: Memory) -> None:
        self._leaves, self._memory = leaves, memory
        self._arrays: list[Any] = []
        self._lent: list[dict[str, Any]] = []
        # A dtype of arrays that are there; to look for another would import its library.
        names = [d for d in DTYPES if d != "bfloat16" or "ml_dtypes" in sys.modules]
        shapes = [leaf.shape if leaf.in_order else None for leaf in leaves]
        self._arrivals = Arrivals(shapes, {name: as_dtype(name) for name in names})
        self._sizes = np.array([leaf.size for leaf in leaves], dtype=np.int64)
        self._known, self._dtype_names = self._arrivals.dtypes.copy(), (None,) * len(leaves)
        self._widths = np.zeros(len(leaves), dtype=np.int64)
        self._addresses = self._arrivals.addresses
        # Gradients that were found to lie apart from what was written then.
        self._apart, self._written = np.zeros(len(leaves), dtype=np.int64), memory.bounds

    def collect(self, arrays: list[Any]) -> tuple[str | None, ...]:
        """Take the gradients, one for each leaf or None, and return their dtypes; raises before
        anything is kept.

        Args:
            arrays: the gradients; the list becomes this object's own.
        """
        found, unusual = self._arrivals, self._arrivals.look(arrays)
        checked = [self._checked(self._leaves[k], arrays[k]) for k in unusual]
        for k, g in zip(unusual, checked, strict=True):
            arrays[k] = g
            found.addresses[k] = g.ctypes.data
        if unusual or not np.array_equal(found.dtypes, self._known):
            self._name(unusual, checked)
        self._arrays = arrays
        self._separate()
        return self._dtype_names

    def _name(self, unusual: list[int], checked: list[AnyArray]) -> None:
        """Find the dtypes of this step's gradients."""
        found = self._arrivals
        names = list(map(found.names.__getitem__, found.dtypes.tolist()))
        widths = np.array(list(map(_BYTES.__getitem__, names)), dtype=np.int64) * self._sizes
        for k, g in zip(unusual, checked, strict=True):
            names[k], widths[k] = g.dtype.name, g.nbytes
        self._dtype_names, self._widths = tuple(names), widths
        self._known[:] = -1 if unusual else found.dtypes
        self._apart[:] = 0

    def _checked(self, leaf: Leaf, g: Any) -> AnyArray:
        if isinstance(g, np.generic):  # what arithmetic on 0-d arrays gives
            g = np.asarray(g)
        if not isinstance(g, np.ndarray):
            raise GradientError(
                f"the gradient of {leaf.name!r} is {type(g).__name__}, not a NumPy array or None"
            )
        g = cast(AnyArray, g)
        if behaves(g):
            raise GradientError(
                f"the gradient of {leaf.name!r} is a {type(g).__name__}, whose class has a say in "
                f"what its elements are, which no kernel asks: pass np.asarray of it (nothing was "
                f"changed)"
            )
        if g.shape != leaf.shape:
            raise GradientError(
                f"the gradient of {leaf.name!r} has shape {g.shape}, and the parameter "
                f"{leaf.shape}; nothing was changed"
            )
        if g.dtype.name not in DTYPES or not g.dtype.isnative:
            raise GradientError(
                f"the gradient of {leaf.name!r} has dtype {g.dtype}: use one of "
                f"{', '.join(DTYPES)} in native byte order; nothing was changed"
            )
        if not has_memory(g):
            raise GradientError(
                f"the gradient of {leaf.name!r} is a view of an array that was resized in place, "
                f"and its memory is gone; nothing was changed"
            )
        return leaf.dense(g)

    def _separate(self) -> None:
        """Copy gradients that lie in memory which the step will write."""
        starts, widths, written = self._addresses, self._widths, self._memory.bounds
        same = written is self._written and np.array_equal(starts, self._apart)
        first, last = written
        if same or not len(first):
            return
        before = np.searchsorted(first, starts + widths, side="left")
        reach = np.where(before > 0, last[before - 1], 0)
        inside = np.flatnonzero((reach > starts) & (widths > 0))
        for k in inside:
            self._arrays[k] = self._arrays[k].copy()
            self._addresses[k] = self._arrays[k].ctypes.data
        self._written = written
        self._apart[:] = 0 if len(inside) else starts

    def bind(self, runner: Runner) -> None:
        """Hand the gradients of a cohort to its runner."""
        members = runner.cohort.members
        if isinstance(runner, NativeRunner):
            runner.refresh("grad", self._addresses[members])
            return
        for arrays, member in zip(cast(Any, runner).arrays, members, strict=True):
            arrays["grad"] = self._arrays[member]
            self._lent.append(arrays)

    def release(self) -> None:
        """Let go of the gradients, so that they do not outlive the step."""
        self._arrays = []
        for arrays in self._lent:
            arrays.pop("grad", None)
        self._lent = []


_BYTES = {None: 0, "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
