"""Paddle's tensors as the engines see them: NumPy views of CPU memory."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray

from isostep.errors import ParameterError
from isostep.stepper import DTYPES, as_dtype

_data_ptr = paddle.Tensor.data_ptr


def dtype_name(dtype: Any) -> str:
    """`paddle.float32` as `"float32"`."""
    return str(dtype).rpartition(".")[-1]


def addresses(tensors: Sequence[Any]) -> NDArray[np.int64]:
    """The address of the data of each tensor."""
    return np.fromiter(map(_data_ptr, tensors), np.int64, len(tensors))


def view_at(address: int, shape: Sequence[int], dtype: str) -> NDArray[Any]:
    """A NumPy array over memory that someone else owns."""
    kind, count = as_dtype(dtype), math.prod(shape)
    if not count:
        return np.empty(tuple(shape), kind)
    memory: Any = (ctypes.c_char * (count * kind.itemsize)).from_address(address)
    return np.frombuffer(memory, kind).reshape(tuple(shape))


def numpy_view(tensor: Any) -> NDArray[Any]:
    """A NumPy array over the memory of a contiguous CPU tensor."""
    address = tensor.data_ptr() if tensor.size else 0
    return view_at(address, tensor.shape, dtype_name(tensor.dtype))


def check_steppable(param: Any) -> None:
    """Refuse parameters that cannot be stepped.

    Raises:
        ParameterError: not a dense, contiguous tensor of a known floating dtype.
    """
    if dtype_name(param.dtype) not in DTYPES:
        raise ParameterError(
            f"parameter {param.name!r} is {param.dtype}: use one of {', '.join(DTYPES)}"
        )
    if not param.is_dense() or not param.is_contiguous():
        raise ParameterError(
            f"parameter {param.name!r} is not a contiguous dense tensor, which a step in place "
            f"needs: make it with .contiguous()"
        )
