"""Paddle's operations as the namespace of traced steps: in programs, and on other devices."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle

from isostep.engines.array import OPERATORS
from isostep.paddle.tensors import dtype_name


class PaddleNamespace:
    """Paddle's functions under the names that a trace has."""

    def cast(self, x: Any, dtype: str) -> Any:
        if isinstance(x, bool | int | float):
            return paddle.full([], x, dtype)
        return x if dtype_name(x.dtype) == dtype else paddle.cast(x, dtype)

    def dtype(self, x: Any) -> str:
        return dtype_name(x.dtype)

    def apply(self, op: str, args: list[Any]) -> Any:
        like = next((a for a in args if not isinstance(a, bool | int | float)), None)
        if like is None:  # a coefficient
            return OPERATORS[op](*args) if op in OPERATORS else float(getattr(np, op)(*args))
        if op == "where" and isinstance(args[0], bool):
            return args[1] if args[0] else args[2]
        return _OPERATIONS[op](*[self._tensor(a, like) for a in args])

    def reduce(self, op: str, x: Any, axes: tuple[int, ...]) -> Any:
        return (paddle.sum if op == "sum" else paddle.mean)(x, axis=list(axes), keepdim=True)

    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        return paddle.reshape(x, list(shape))

    def _tensor(self, x: Any, like: Any) -> Any:
        """A number as a tensor: many of Paddle's functions take none, and programs round those
        beside an operator to float32."""
        if not isinstance(x, bool | int | float):
            return x
        dtype = "float64" if like.dtype == paddle.bool else like.dtype
        return paddle.full([], x, dtype)


_OPERATIONS: dict[str, Any] = OPERATORS | {
    "sqrt": paddle.sqrt,
    "abs": paddle.abs,
    "sign": paddle.sign,
    "log": paddle.log,
    "expm1": paddle.expm1,
    "isfinite": lambda x: paddle.cast(paddle.isfinite(x), x.dtype),
    "maximum": paddle.maximum,
    "minimum": paddle.minimum,
    "where": paddle.where,
}
