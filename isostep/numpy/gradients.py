"""The gradients of one step: checked, dense, and by address."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from isostep.engines.cohort import Runner
from isostep.engines.leaf import AnyArray, Leaf
from isostep.engines.native import NativeRunner
from isostep.errors import GradientError
from isostep.numpy import headers
from isostep.stepper import DTYPES, as_dtype


class Gradients:
    """The gradients of one step: checked, dense, and by address."""

    def __init__(self, leaves: list[Leaf]) -> None:
        self._leaves = leaves
        self._arrays: list[Any] = []
        self._dtype_names: tuple[str | None, ...] = ()
        self._lent: list[dict[str, Any]] = []
        self._headers: headers.Headers | None = None
        self._dtypes, self._widths, self._addresses, self._apart = (
            np.zeros(len(leaves), dtype=np.int64) for _ in range(4)
        )
        self._in_order = all(leaf.in_order for leaf in leaves)
        spans = sorted(
            np.lib.array_utils.byte_bounds(leaf.array) for leaf in leaves if leaf.array.size
        )
        self._starts = np.array([s[0] for s in spans], dtype=np.int64)
        self._ends = np.maximum.accumulate(np.array([s[1] for s in spans], dtype=np.int64))

    def collect(self, arrays: list[Any]) -> tuple[str | None, ...]:
        """Take the gradients, one for each leaf or None, and return their dtypes; raises before
        anything is kept."""
        if not self._as_usual(arrays):
            arrays = [
                None if g is None else self._checked(leaf, g)
                for leaf, g in zip(self._leaves, arrays, strict=True)
            ]
            # Names, since a dtype cannot be told from None: np.dtype("float64") == None is true.
            self._dtype_names = tuple([None if g is None else g.dtype.name for g in arrays])
            widths = [0 if g is None else g.nbytes for g in arrays]
            self._widths = np.array(widths, dtype=np.int64)
            self._addresses[:] = [0 if g is None else g.ctypes.data for g in arrays]
            self._dtypes[:] = self._apart[:] = 0
        self._arrays = arrays
        self._separate()
        return self._dtype_names

    def _as_usual(self, arrays: list[Any]) -> bool:
        """Take arrays that lie as their parameters do and have the dtypes of the step before, as
        they nearly always do."""
        if not self._in_order or len(arrays) < _MANY or not headers.usable():
            return False
        if self._headers is None:
            self._headers = headers.Headers([leaf.array.shape for leaf in self._leaves])
        found = self._headers
        if not found.read(arrays):
            return False
        if not np.array_equal(found.dtypes, self._dtypes):
            names = tuple(_PLAIN_DTYPES.get(d, "") for d in found.dtypes.tolist())
            if "" in names:
                return False
            self._dtype_names = names
            self._widths = np.array([g.nbytes for g in arrays], dtype=np.int64)
            self._dtypes[:] = found.dtypes
            self._apart[:] = 0
        self._addresses[:] = found.addresses
        return True

    def _checked(self, leaf: Leaf, g: Any) -> AnyArray:
        if isinstance(g, np.generic):  # what arithmetic on 0-d arrays gives
            g = np.asarray(g)
        if not isinstance(g, np.ndarray):
            raise GradientError(
                f"the gradient of {leaf.name!r} is {type(g).__name__}, not a NumPy array or None"
            )
        g = cast(AnyArray, g)
        if g.shape != leaf.array.shape:
            raise GradientError(
                f"the gradient of {leaf.name!r} has shape {g.shape}, and the parameter "
                f"{leaf.array.shape}; nothing was changed"
            )
        if g.dtype.name not in DTYPES or not g.dtype.isnative:
            raise GradientError(
                f"the gradient of {leaf.name!r} has dtype {g.dtype}: use one of "
                f"{', '.join(DTYPES)} in native byte order; nothing was changed"
            )
        return leaf.dense(g)

    def _separate(self) -> None:
        """Copy gradients that lie in the memory of a parameter, which the step will write."""
        starts, widths = self._addresses, self._widths
        if not len(self._starts) or np.array_equal(starts, self._apart):
            return
        before = np.searchsorted(self._starts, starts + widths, side="left")
        reach = np.where(before > 0, self._ends[before - 1], 0)
        inside = np.flatnonzero((reach > starts) & (widths > 0))
        for k in inside:
            self._arrays[k] = self._arrays[k].copy()
            self._addresses[k] = self._arrays[k].ctypes.data
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


# From how many arrays on the kernel that reads headers is worth having.
_MANY = 32
_PLAIN_DTYPES = {id(as_dtype(name)): name for name in DTYPES if name != "bfloat16"}
