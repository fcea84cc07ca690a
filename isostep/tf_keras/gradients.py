"""Gradients in the forms that tf_keras takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from isostep.tf_keras import mesh as meshes


def as_tensor(gradient: Any, variable: Any) -> Any:
    """A gradient as it is, or the tensor that NumPy arrays, numbers and lists stand for.

    Args:
        gradient: of `variable`; None if there is none.
        variable: its dtype, and on a mesh its layout, become those of the tensor.
    """
    if not isinstance(gradient, np.ndarray | np.generic | float | int | list | tuple):
        return gradient
    layout = getattr(variable, "layout", None)
    given: Any = gradient
    made = tf.convert_to_tensor(given, variable.dtype)
    return made if layout is None else meshes.laid_out(made, layout)


def as_dense(gradient: Any, variable: Any) -> Any:
    """The dense gradient that a sparse one stands for, with or without its dense shape."""
    if not isinstance(gradient, tf.IndexedSlices):
        return tf.convert_to_tensor(gradient)
    return tf.math.unsorted_segment_sum(gradient.values, gradient.indices, variable.shape[0])
