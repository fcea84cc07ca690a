"""Tensors as the engines see them: NumPy views of CPU memory, bfloat16 and complex included."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from isostep.errors import ParameterError
from isostep.stepper import as_dtype
from isostep.torch import raw

TORCH_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()} | {
    torch.complex64: "float32",
    torch.complex128: "float64",
}
"""The dtype of the arithmetic's arrays; a complex tensor is its real view."""


def real(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without autograd, a complex one as its real view."""
    tensor = tensor.detach()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


_Bytes = ctypes.c_char * (1 << 62)  # an array type for all sizes: making one takes longer


def numpy_view(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A NumPy array over the memory of a strided CPU tensor.

    It neither keeps the memory alive nor keeps torch from resizing it, as `Tensor.numpy()` does:
    before it is used again, its owner must have looked whether the tensor is where it was.
    """
    if tensor.is_complex():
        tensor = real(tensor)
    size = tensor.element_size()
    strides = tuple([size * stride for stride in tensor.stride()])
    memory: Any = _Bytes.from_address(tensor.data_ptr())
    return np.ndarray(tuple(tensor.shape), numpy_dtype(tensor.dtype), memory, 0, strides)


@functools.cache
def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """The NumPy dtype of the elements of a tensor, of a complex one's real view."""
    return as_dtype(DTYPE_NAMES[dtype])


class Held:
    """A tensor for the array engine: as torch has it, with what a stepper asks of an array.

    Args:
        tensor: the tensor itself, which autograd may follow.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.dtype = numpy_dtype(tensor.dtype)
        self.nbytes = tensor.numel() * tensor.element_size()


def stand_in(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """An array with the shape and dtype of a tensor that lies elsewhere, and no memory."""
    tensor = real(tensor)
    one = np.zeros((), dtype=numpy_dtype(tensor.dtype))
    return np.broadcast_to(one, tuple(tensor.shape))


def new_tensor(
    shape: Sequence[int], order: Sequence[int], dtype: torch.dtype, like: torch.Tensor, fill: float
) -> torch.Tensor:
    """A dense tensor whose memory runs along the axes in `order`; complex if `like` is."""
    if like.is_complex() and not dtype.is_complex:
        dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    dense = _empty([shape[axis] for axis in order], dtype, like.device)
    # A complex slot that starts at a number starts there in both its parts, as torch's do.
    real(dense).fill_(fill)
    return dense.permute([list(order).index(axis) for axis in range(len(shape))])


_HUGE = 1 << 22  # bytes from which NumPy asks for huge pages


def _empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A dense tensor of any content. Large ones on the CPU lie in memory that NumPy allocates: on
    Linux it asks for huge pages, which torch does not, and a step over memory is faster in them."""
    count = math.prod(shape)
    if device.type != "cpu" or dtype.is_complex or count * dtype.itemsize < _HUGE:
        return torch.empty(shape, dtype=dtype, device=device)
    words = np.empty(count * dtype.itemsize // 2, dtype=np.uint16)
    return torch.from_numpy(words).view(dtype).view(shape)


def oddity(tensor: torch.Tensor) -> str:
    """What keeps kernels from a tensor, in words; empty for a tensor that is memory and no more.

    Operations of torch know what to do with the others: wrappers of tensors, views that negate or
    conjugate what they show, tensors of a transformation of torch.func.
    """
    kind = type(tensor)
    if kind is not torch.Tensor and kind is not torch.nn.Parameter and _behaves(kind):
        return f"a {kind.__name__}, whose class has operations of its own"
    if tensor.layout is not torch.strided or raw.keys(tensor) == _plain_keys(tensor.device.type):
        return ""
    if tensor.is_inference():
        return "an inference tensor"
    if tensor.is_conj() or tensor.is_neg():
        return "a view that negates or conjugates what it shows"
    return f"a tensor of {torch._C._dispatch_keys(tensor)}"


def _behaves(kind: Any) -> bool:
    """Whether a class of tensors does something of its own in torch's operations."""
    if kind.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl:
        return True
    function = kind.__torch_function__
    usual = torch.Tensor.__torch_function__.__func__
    is_usual = getattr(function, "__func__", None) is usual
    return not is_usual and function is not torch._C._disabled_torch_function_impl


@functools.cache
def _plain_keys(device: str) -> int:
    """The dispatch keys of a tensor on such a device that is nothing more."""
    with torch.inference_mode(False):
        return raw.keys(torch.empty(0, device=device))


def reach(tensor: torch.Tensor) -> int:
    """Bytes from the first element of a strided tensor to the end of its last."""
    if tensor.is_contiguous():  # an empty one is, too
        return tensor.numel() * tensor.element_size()
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def missing_bytes(tensor: torch.Tensor) -> str:
    """What a strided tensor lacks of the memory that it shows, in words; else nothing."""
    needed = tensor.storage_offset() * tensor.element_size() + reach(tensor)
    needed = needed if tensor.numel() else 0
    there = tensor.untyped_storage().nbytes()
    return f"has {there} of the {needed} bytes that it shows" if there < needed else ""


REAL_RULES = ("Adafactor",)
"""The rules whose torch classes refuse complex parameters."""


def check_steppable(tensor: torch.Tensor, name: str, rule: str) -> None:
    """Refuse parameters that cannot be stepped.

    Raises:
        ParameterError: not a strided tensor of a known floating dtype, elements share memory, or
            the memory has been freed.
        RuntimeError: complex, and the rule takes real ones only; torch's error.
    """
    if tensor.is_complex() and rule in REAL_RULES:
        raise RuntimeError(f"{rule} does not support complex parameters: {name!r} is one")
    if tensor.layout is not torch.strided:
        raise ParameterError(f"parameter {name!r} is {tensor.layout}: it must be torch.strided")
    if tensor.dtype not in DTYPE_NAMES:
        known = ", ".join(str(dtype) for dtype in DTYPE_NAMES)
        raise ParameterError(f"parameter {name!r} is {tensor.dtype}: use one of {known}")
    shape = zip(tensor.shape, tensor.stride(), strict=True)
    if tensor.numel() and any(stride == 0 and size > 1 for size, stride in shape):
        raise ParameterError(
            f"parameter {name!r} is expanded: several of its elements share one place in memory; "
            f"make it with .clone() or .contiguous()"
        )
    missing = missing_bytes(tensor)
    if missing:
        raise ParameterError(
            f"the storage of parameter {name!r} {missing}: resize it and fill it before the step"
        )
