"""Paddle's operations as the namespace of traced steps: in programs, and on other devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle

from isostep.engines.array import OPERATORS
from isostep.paddle.tensors import dtype_name

Number = bool | int | float


class Value:
    """A tensor or a variable of a program, with operators that keep numbers exact.

    Paddle's own operators put a number beside a float64 variable into the program as float32.

    Args:
        own: what it stands for.
    """

    def __init__(self, own: Any) -> None:
        self.own = own

    def __neg__(self) -> Value:
        return Value(-self.own)


def _operator(function: Callable[[Any, Any], Any], turned: bool) -> Callable[[Value, Any], Value]:
    def operation(self: Value, other: Any) -> Value:
        own, beside = self.own, bare(other)
        if isinstance(beside, Number):
            beside = paddle.full([], beside, own.dtype)
        return Value(function(beside, own) if turned else function(own, beside))

    return operation


for _name, _function in {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "truediv": lambda x, y: x / y,
    "mod": lambda x, y: x % y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "pow": lambda x, y: x**y,
    "eq": lambda x, y: x == y,
}.items():
    setattr(Value, f"__{_name}__", _operator(_function, turned=False))
    if _name in ("add", "sub", "mul", "truediv"):
        setattr(Value, f"__r{_name}__", _operator(_function, turned=True))


def bare(x: Any) -> Any:
    """What a `Value` stands for; anything else as it is."""
    return x.own if isinstance(x, Value) else x


class PaddleNamespace:
    """Paddle's functions under the names that a trace has, on `Value`s and numbers."""

    def cast(self, x: Any, dtype: Any) -> Any:
        if isinstance(x, Number):
            return Value(paddle.full([], x, dtype))
        own = bare(x)
        return Value(own if dtype_name(own.dtype) == dtype else paddle.cast(own, dtype))

    def dtype(self, x: Any) -> str:
        return dtype_name(bare(x).dtype)

    def apply(self, op: str, args: list[Any]) -> Any:
        if op in OPERATORS:
            return OPERATORS[op](*args)
        if all(isinstance(a, Number) for a in args):  # a coefficient
            return float(getattr(np, op)(*args))
        if op == "where" and isinstance(args[0], bool):
            return args[1] if args[0] else args[2]
        like = next(bare(a) for a in args[op == "where" :] if not isinstance(a, Number))
        return Value(_OPERATIONS[op](*[self._tensor(a, like.dtype) for a in args]))

    def reduce(self, op: str, x: Any, axes: tuple[int, ...]) -> Any:
        function = paddle.sum if op == "sum" else paddle.mean
        return Value(function(bare(x), axis=list(axes), keepdim=True))

    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        return Value(paddle.reshape(bare(x), list(shape)))

    def _tensor(self, x: Any, dtype: Any) -> Any:
        return paddle.full([], x, dtype) if isinstance(x, Number) else bare(x)


_OPERATIONS: dict[str, Any] = {
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
