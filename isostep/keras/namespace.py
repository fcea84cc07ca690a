"""Keras' backend, whichever is chosen, as the namespace of traced steps."""

from __future__ import annotations

import math
from typing import Any

from keras import backend, ops

from isostep.engines.array import OPERATORS


class KerasNamespace:
    """`keras.ops` under the names that a trace has."""

    def cast(self, x: Any, dtype: str) -> Any:
        if isinstance(x, float | int):  # ops.cast would take it through float32
            return ops.convert_to_tensor(x, dtype=dtype)
        return ops.cast(x, dtype)

    def dtype(self, x: Any) -> str:
        return backend.standardize_dtype(x.dtype)

    def apply(self, op: str, args: list[Any]) -> Any:
        return _OPERATIONS[op](*args)

    def reduce(self, op: str, x: Any, axes: tuple[int, ...]) -> Any:
        total: Any = ops.sum(x, axis=axes, keepdims=True)
        # Not ops.mean, which is float32 on some backends whatever x is.
        return total if op == "sum" else total / math.prod(x.shape[axis] for axis in axes)

    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        return ops.reshape(x, shape)


_OPERATIONS: dict[str, Any] = OPERATORS | {
    "sqrt": ops.sqrt,
    "abs": ops.abs,
    "sign": ops.sign,
    "log": ops.log,
    "expm1": ops.expm1,
    "isfinite": lambda x: ops.cast(ops.isfinite(x), x.dtype),
    "maximum": ops.maximum,
    "minimum": ops.minimum,
    "where": ops.where,
}

if backend.backend() == "torch":
    # There ops.maximum and ops.minimum are float32 whatever their arguments are.
    import torch

    def _in_own_dtype(function: Any) -> Any:
        def apply(x: Any, y: Any) -> Any:
            x, y = (
                torch.as_tensor(v, dtype=None if ops.is_tensor(v) else torch.float64)
                for v in (x, y)
            )
            return function(x, y)  # a tensor without axes leaves the dtype to the other

        return apply

    _OPERATIONS |= {
        "maximum": _in_own_dtype(torch.maximum),
        "minimum": _in_own_dtype(torch.minimum),
    }
