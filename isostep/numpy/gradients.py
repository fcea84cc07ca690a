"""The gradients of one step: checked, dense, and by address."""

from __future__ import annotations

import ctypes
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from isostep.engines.cohort import Runner
from isostep.engines.leaf import AnyArray, Leaf
from isostep.engines.native import NativeRunner, words_at
from isostep.errors import GradientError
from isostep.stepper import DTYPES, as_dtype


class Gradients:
    """The gradients of one step: checked, dense, and by address."""

    def __init__(self, leaves: list[Leaf]) -> None:
        self._leaves = leaves
        self._arrays: list[Any] = []
        self._kinds: list[int] = []
        self._dtype_names: tuple[str | None, ...] = ()
        self._bytes = np.zeros(0, dtype=np.int64)
        self._lent: list[dict[str, Any]] = []
        self._addresses = np.zeros(len(leaves), dtype=np.int64)
        self._names = [leaf.name for leaf in leaves]
        self._shapes = [leaf.array.shape for leaf in leaves]
        self._in_order = all(leaf.in_order for leaf in leaves)
        self._sizes = np.array([leaf.array.size for leaf in leaves], dtype=np.int64)
        spans = sorted(
            np.lib.array_utils.byte_bounds(leaf.array) for leaf in leaves if leaf.array.size
        )
        self._starts = np.array([s[0] for s in spans], dtype=np.int64)
        self._ends = np.maximum.accumulate(np.array([s[1] for s in spans], dtype=np.int64))

    def collect(self, named: dict[str, Any]) -> tuple[str | None, ...]:
        """Take the gradients and return their dtypes; raises before anything is kept."""
        arrays = [named[name] for name in self._names]
        if not self._plain(arrays):
            arrays = [
                None if g is None else self._checked(leaf, g)
                for leaf, g in zip(self._leaves, arrays, strict=True)
            ]
        # Numbers, since a dtype cannot be told from None: np.dtype("float64") == None is true.
        kinds = [-1 if g is None else g.dtype.num for g in arrays]
        if kinds != self._kinds:
            widths = [0 if g is None else g.itemsize for g in arrays]
            self._bytes = np.array(widths, dtype=np.int64) * self._sizes
            self._dtype_names = tuple([None if g is None else g.dtype.name for g in arrays])
            self._kinds = kinds
        self._arrays = arrays
        self._addresses[:] = _addresses(arrays)
        self._separate(self._bytes)
        return self._dtype_names

    def _plain(self, arrays: list[Any]) -> bool:
        """Whether all are dense arrays of the right shapes and dtypes, as they nearly always are;
        whole-list comparisons keep the check of hundreds of arrays cheap."""
        return (
            self._in_order
            and set(map(type, arrays)) == {np.ndarray}
            and [g.shape for g in arrays] == self._shapes
            and False not in {g.flags.c_contiguous for g in arrays}
            and {g.dtype for g in arrays} <= _PLAIN_DTYPES
        )

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

    def _separate(self, widths: NDArray[np.int64]) -> None:
        """Copy gradients that lie in the memory of a parameter, which the step will write."""
        if not len(self._starts):
            return
        before = np.searchsorted(self._starts, self._addresses + widths, side="left")
        reach = np.where(before > 0, self._ends[before - 1], 0)
        for k in np.flatnonzero((reach > self._addresses) & (widths > 0)):
            self._arrays[k] = self._arrays[k].copy()
            self._addresses[k] = self._arrays[k].ctypes.data

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


_PLAIN_DTYPES = {as_dtype(name) for name in DTYPES if name != "bfloat16"}


def _addresses(arrays: list[Any]) -> Any:
    """The address of each array's data, 0 for None."""
    if _HEADER_FIRST and len(arrays) >= _MANY and type(None) not in set(map(type, arrays)):
        # `array.ctypes.data` costs a microsecond, which a step over hundreds of tensors feels.
        objects = np.fromiter(map(id, arrays), dtype=np.int64, count=len(arrays))
        return words_at(objects + object.__basicsize__)
    return [0 if a is None else a.ctypes.data for a in arrays]


def _header_comes_first() -> bool:
    """Whether the data pointer is the first field behind the object header, as NumPy's C API has
    it and CPython lays objects out."""
    probes = [np.zeros(3), np.zeros((2, 2), np.float32)[1:], np.array(1.0)]
    try:
        return all(
            ctypes.c_void_p.from_address(id(p) + object.__basicsize__).value == p.ctypes.data
            for p in probes
        )
    except (TypeError, ValueError):
        return False


_MANY = 32
_HEADER_FIRST = _header_comes_first()
