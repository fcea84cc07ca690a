"""Tensors as the engines see them: NumPy views of CPU memory, bfloat16 and complex included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from isostep.errors import ParameterError
from isostep.stepper import as_dtype

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


def numpy_view(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A NumPy array over the memory of a strided CPU tensor."""
    tensor = real(tensor)
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(as_dtype("bfloat16"))
    return tensor.numpy()


class Held:
    """A tensor for the array engine: as torch has it, with what a stepper asks of an array.

    Args:
        tensor: the tensor itself, which autograd may follow.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.dtype = as_dtype(DTYPE_NAMES[tensor.dtype])
        self.nbytes = tensor.numel() * tensor.element_size()


def stand_in(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """An array with the shape and dtype of a tensor that lies elsewhere, and no memory."""
    tensor = real(tensor)
    one = np.zeros((), dtype=as_dtype(DTYPE_NAMES[tensor.dtype]))
    return np.broadcast_to(one, tuple(tensor.shape))


def new_tensor(
    shape: Sequence[int], order: Sequence[int], dtype: torch.dtype, like: torch.Tensor, fill: float
) -> torch.Tensor:
    """A dense tensor whose memory runs along the axes in `order`; complex if `like` is."""
    if like.is_complex():
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


REAL_RULES = ("Adafactor",)
"""The rules whose torch classes refuse complex parameters."""


def check_steppable(tensor: torch.Tensor, name: str, rule: str) -> None:
    """Refuse parameters that cannot be stepped.

    Raises:
        ParameterError: not a strided tensor of a known floating dtype, or elements share memory.
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
    if any(stride == 0 and size > 1 for size, stride in shape):
        raise ParameterError(
            f"parameter {name!r} is expanded: several of its elements share one place in memory; "
            f"make it with .clone() or .contiguous()"
        )
