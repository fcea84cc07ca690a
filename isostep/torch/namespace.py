"""torch as an array namespace: for devices without a kernel and for differentiable steps."""

from __future__ import annotations

from typing import Any

import torch

from isostep.engines.array import OPERATORS
from isostep.torch.tensors import TORCH_DTYPES, Held


def _with_number(function: Any) -> Any:
    """`function(x, y)` where one of the two may be a Python number."""

    def apply(x: Any, y: Any) -> Any:
        tensor = x if isinstance(x, torch.Tensor) else y
        x, y = (
            v if isinstance(v, torch.Tensor) else torch.full_like(tensor, float(v)) for v in (x, y)
        )
        return function(x, y)

    return apply


def _where(condition: Any, x: Any, y: Any) -> Any:
    if not isinstance(condition, torch.Tensor):
        return x if condition else y
    return torch.where(condition, x, y)


class TorchNamespace:
    """Tensors, written in place by operations that autograd sees.

    What it loads and stores are `Held`; all their axes run in the order of the cohort's shape.
    """

    name = "torch"

    def load(self, array: Held, shape: tuple[int, ...], dtype: str) -> Any:
        return _real(array.tensor).reshape(shape).to(TORCH_DTYPES[dtype], copy=True)

    def store(self, array: Held, value: Any) -> None:
        tensor = _real(array.tensor)
        tensor.copy_(value.reshape(tensor.shape))

    def scalar(self, value: float, dtype: str) -> Any:
        return value

    def total(self, x: Any) -> float:
        return float(x.sum(dtype=torch.float64))

    def reduce(self, op: str, x: Any, axis: int, dtype: str) -> Any:
        reduce = torch.sum if op == "sum" else torch.mean
        return reduce(x, dim=axis, keepdim=True, dtype=torch.float64).to(TORCH_DTYPES[dtype])

    def apply(self, op: str, args: list[Any]) -> Any:
        return _OPERATIONS[op](*args)


def _real(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


_OPERATIONS: dict[str, Any] = OPERATORS | {
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "sign": torch.sign,
    "isfinite": lambda x: torch.isfinite(x).to(x.dtype),
    "maximum": _with_number(torch.maximum),
    "minimum": _with_number(torch.minimum),
    "where": _where,
}
