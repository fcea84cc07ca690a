"""TensorFlow as the namespace of traced steps, and its variant for tensors on a mesh."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from isostep.engines.array import OPERATORS


class TensorFlowNamespace:
    """TensorFlow's functions under the names that a trace has."""

    def cast(self, x: Any, dtype: str) -> Any:
        if isinstance(x, float | int):  # tf.cast would take it through float32
            return tf.constant(x, dtype)
        return tf.cast(x, dtype)

    def dtype(self, x: Any) -> str:
        return x.dtype.name

    def apply(self, op: str, args: list[Any]) -> Any:
        return _OPERATIONS[op](*args)

    def reduce(self, op: str, x: Any, axes: tuple[int, ...]) -> Any:
        return (tf.reduce_sum if op == "sum" else tf.reduce_mean)(x, axes, keepdims=True)

    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        return x if tuple(x.shape) == shape else tf.reshape(x, shape)


class MeshNamespace(TensorFlowNamespace):
    """The same for DTensors. Their `tf.where` cuts up its condition only by luck: its inputs keep
    the layouts that they come with. Products bring theirs together, as all arithmetic does, and
    the product with a zero that knows no NaN chooses as exactly."""

    def apply(self, op: str, args: list[Any]) -> Any:
        if op != "where":
            return super().apply(op, args)
        condition, (x, y) = args[0], _alike(*args[1:])
        chosen = tf.cast(condition, x.dtype)
        other = 1 - chosen
        return tf.math.multiply_no_nan(x, chosen) + tf.math.multiply_no_nan(y, other)


_OPERATIONS: dict[str, Any] = OPERATORS | {
    "sqrt": tf.sqrt,
    "abs": tf.abs,
    "sign": tf.sign,
    "log": tf.math.log,
    "expm1": tf.math.expm1,
    "isfinite": lambda x: tf.cast(tf.math.is_finite(x), x.dtype),
    "maximum": lambda x, y: tf.maximum(*_alike(x, y)),
    "minimum": lambda x, y: tf.minimum(*_alike(x, y)),
    "where": lambda condition, x, y: tf.where(condition, *_alike(x, y)),
}


def _alike(x: Any, y: Any) -> tuple[Any, Any]:
    """Both in one dtype: TensorFlow takes a number that comes first for float32."""
    dtype = y.dtype if isinstance(x, float | int) else x.dtype
    return tf.convert_to_tensor(x, dtype), tf.convert_to_tensor(y, dtype)
