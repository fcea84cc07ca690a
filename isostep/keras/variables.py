"""Keras' variables: where its optimizers keep those of each slot, and what stands for one."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import backend

from isostep.stepper import as_dtype

ATTRIBUTES: dict[str, dict[str, str]] = {
    "SGD": {"momentum_buffer": "momentums"},
    "Adagrad": {"sum": "_accumulators"},
    "RMSprop": {
        "square_avg": "_velocities",
        "momentum_buffer": "_momentums",
        "grad_avg": "_average_gradients",
    },
    "Adadelta": {"square_avg": "_accumulated_grads", "acc_delta": "_accumulated_delta_vars"},
    "Adam": {
        "exp_avg": "_momentums",
        "exp_avg_sq": "_velocities",
        "max_exp_avg_sq": "_velocity_hats",
    },
    "Adafactor": {"row": "_r", "column": "_c", "exp_avg_sq": "_v"},
}
ATTRIBUTES["AdamW"] = ATTRIBUTES["Adam"]
"""By rule and slot: the list that Keras' `build` makes, one variable for each of the model's."""


def stand_in(variable: Any) -> np.ndarray[Any, Any]:
    """An array with the shape and dtype of a variable, and no memory."""
    dtype = as_dtype(backend.standardize_dtype(variable.dtype))
    return np.broadcast_to(np.zeros((), dtype), tuple(variable.shape))
