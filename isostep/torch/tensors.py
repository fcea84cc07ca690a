"""Tensors as the engines see them: NumPy views of CPU memory, bfloat16 and complex included."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

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


def stand_in(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """An array with the shape and dtype of a tensor that lies elsewhere, and no memory."""
    tensor = real(tensor)
    one = np.zeros((), dtype=as_dtype(DTYPE_NAMES[tensor.dtype]))
    return np.broadcast_to(one, tuple(tensor.shape))


def like(tensor: torch.Tensor, dtype: torch.dtype, fill: float) -> torch.Tensor:
    """A new tensor of the same shape and order of memory; complex if `tensor` is."""
    if tensor.is_complex() and not dtype.is_complex:
        dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    new = torch.full_like(tensor, 0, dtype=dtype, memory_format=torch.preserve_format)
    # A complex slot that starts at a number starts there in both its parts, as torch's do.
    real(new).fill_(fill)
    return new.detach()
