"""The arrays that a kernel works on: one column of its address table for each."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

DTYPE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""The dtypes that arrays may be stored in, and the bytes of one element."""


@dataclass(frozen=True)
class Array:
    """One array of every tensor: a column of the address table.

    Args:
        name: as the recipe calls it.
        dtype: as it is stored.
    """

    name: str
    dtype: str


@functools.cache
def name_of(dtype: np.dtype[Any]) -> str:
    """The name of a dtype, which NumPy puts together anew each time that it is asked."""
    return dtype.name


def numpy_dtype(name: str) -> np.dtype[Any]:
    """NumPy's dtype for one of `DTYPE_BYTES`; `bfloat16` comes from ml_dtypes."""
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def compute_dtype(arrays: list[Array]) -> Literal["float32", "float64"]:
    """The dtype of the arithmetic: float64 where an array has it, whose digits would be lost
    otherwise (a slot may be wider than its parameter), float32 for all others."""
    return "float64" if any(array.dtype == "float64" for array in arrays) else "float32"
