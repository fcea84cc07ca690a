"""Gradients as Keras hands them, and as a step takes them."""

from __future__ import annotations

from typing import Any

import keras
from keras import backend, ops

from isostep.errors import GradientError


def dense(gradient: Any, variable: Any) -> Any:
    """A gradient as an array of the shape of its variable.

    Args:
        gradient: whatever `keras.ops.convert_to_tensor` takes: a tensor, a NumPy array, a list.
            Rows of an embedding (`tf.IndexedSlices`, also without dense shape; `BCOO` in JAX;
            sparse tensors of torch) are spread out.
        variable: what it is the gradient of.

    Raises:
        GradientError: its shape is not that of the variable, and cannot be broadcast to it.
    """
    if backend.backend() == "tensorflow":
        gradient = _without_slices(gradient, variable)
    elif backend.backend() == "torch" and ops.is_tensor(gradient):
        gradient = gradient.to_dense()  # itself, if it is
    given = ops.is_tensor(gradient) or isinstance(gradient, keras.Variable)
    dtype = None if given or hasattr(gradient, "todense") else variable.dtype
    gradient = ops.convert_to_tensor(gradient, dtype=dtype, sparse=False)
    shape = tuple(variable.shape)
    if _unknown(gradient.shape) or tuple(gradient.shape) == shape:
        return gradient
    try:
        return ops.broadcast_to(gradient, shape)
    except Exception as error:
        raise GradientError(
            f"the gradient of {getattr(variable, 'path', variable.name)!r} has shape "
            f"{tuple(gradient.shape)}, and the variable {shape}; nothing was changed"
        ) from error


def _unknown(shape: Any) -> bool:
    """Whether TensorFlow, compiling, does not know a shape yet."""
    return not getattr(shape, "is_fully_defined", lambda: True)()


def _without_slices(gradient: Any, variable: Any) -> Any:
    import tensorflow as tf

    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    indices = tf.convert_to_tensor(gradient.indices)
    shape = tf.constant(tuple(variable.shape), indices.dtype)
    return tf.convert_to_tensor(tf.IndexedSlices(gradient.values, indices, shape))
