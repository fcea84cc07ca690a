"""The arrays that a kernel works on: one column of its address table for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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


def compute_dtype(arrays: list[Array]) -> Literal["float32", "float64"]:
    """The dtype of the arithmetic: float64 for float64 parameters, float32 for all others."""
    param = next(a for a in arrays if a.name == "param")
    return "float64" if param.dtype == "float64" else "float32"
