"""Paddle's tensors as the engines see them: NumPy views of CPU memory."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle.base import core

from isostep.errors import ParameterError
from isostep.stepper import DTYPES, as_dtype

_data_ptr = paddle.Tensor.data_ptr
ONE_PLACE = not (
    core.is_compiled_with_cuda()
    or core.is_compiled_with_xpu()
    or paddle.device.get_all_custom_device_type()
)
"""Whether this Paddle has no other memory than the CPU's."""


def dtype_name(dtype: Any) -> str:
    """`paddle.float32` as `"float32"`."""
    return str(dtype).rpartition(".")[-1]


def addresses(tensors: Sequence[Any]) -> NDArray[np.int64]:
    """The address of the data of each tensor; 0 where there is none.

    Raises:
        RuntimeError: a tensor has less memory than its shape needs; Paddle's error.
    """
    found = list(map(_data_ptr, tensors))
    if None in found:  # a tensor whose memory was given up
        found = [address or 0 for address in found]
    return np.array(found, dtype=np.int64)


def view_at(address: int, shape: Sequence[int], dtype: str) -> NDArray[Any]:
    """A NumPy array over memory that someone else owns."""
    kind, count = as_dtype(dtype), math.prod(shape)
    if not count:
        return np.empty(tuple(shape), kind)
    memory: Any = (ctypes.c_char * (count * kind.itemsize)).from_address(address)
    return np.frombuffer(memory, kind).reshape(tuple(shape))


def numpy_view(tensor: Any) -> NDArray[Any]:
    """A NumPy array over the memory of a contiguous CPU tensor."""
    return view_at(tensor.data_ptr() or 0, tensor.shape, dtype_name(tensor.dtype))


def has_memory(tensor: Any) -> bool:
    """Whether a tensor is a dense one that has the memory its shape and strides need."""
    if not tensor.is_dense() or not tensor._is_initialized():
        return False
    try:
        tensor.data_ptr()
    except RuntimeError:  # it has less
        return False
    if tensor.is_contiguous():
        return True
    # Paddle's cast_ leaves strides that lead out of the new memory.
    return tensor._offset() + extent(tensor) * tensor.element_size() <= tensor._holder_size()


def extent(tensor: Any) -> int:
    """From the first to the last element of a tensor, in elements."""
    count = math.prod(tensor.shape)
    if not count or tensor.is_contiguous():
        return count
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.get_strides(), strict=True))


def on_cpu(tensor: Any) -> bool:
    """Whether a tensor with memory is whole on the CPU."""
    return ONE_PLACE or (tensor.place.is_cpu_place() and not tensor.is_dist())


def check_steppable(param: Any) -> None:
    """Refuse parameters that cannot be stepped.

    Raises:
        ParameterError: not of a known floating dtype, or without the memory that the shape needs.
    """
    if not has_memory(param):
        raise ParameterError(
            f"parameter {param.name!r} has less memory than its shape {tuple(param.shape)} needs: "
            f"give it values again; nothing was changed"
        )
    check_dtype(param)


def check_dtype(param: Any) -> None:
    """Refuse parameters that are not of a known floating dtype.

    Raises:
        ParameterError: this one is not.
    """
    if dtype_name(param.dtype) not in DTYPES:
        raise ParameterError(
            f"parameter {param.name!r} is {param.dtype}: use one of {', '.join(DTYPES)}"
        )


def check_names(params: Sequence[Any]) -> None:
    """Refuse two parameters of one name, which would share accumulators.

    Raises:
        ParameterError: there are two.
    """
    known: dict[str, Any] = {}
    for param in params:
        if known.setdefault(param.name, param) is not param:
            raise ParameterError(
                f"two parameters are called {param.name!r}, and Paddle keeps accumulators by "
                f"name: build the layers under one paddle.utils.unique_name.guard(), or give "
                f"them names by ParamAttr(name=...)"
            )
