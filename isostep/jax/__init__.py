"""isostep for JAX: optax' transformations, and a fused step that needs no tree of updates.

from isostep.jax import adamw  # instead of: from optax import adamw

optimizer = adamw(3e-4, weight_decay=0.1, clip=isostep.Clip(global_norm=1.0), ema=0.999)
state = optimizer.init(params)
updates, state = optimizer.update(grads, state, params)  # optax' contract
params, state = optimizer.apply(params, grads, state)  # or all in one
"""

from __future__ import annotations

from isostep.jax.factories import (
    adadelta,
    adafactor,
    adagrad,
    adam,
    adamw,
    amsgrad,
    nadam,
    nadamw,
    rmsprop,
    sgd,
)
from isostep.jax.layout import State
from isostep.jax.optimizer import Optimizer

__all__ = [
    "Optimizer",
    "State",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamw",
    "amsgrad",
    "nadam",
    "nadamw",
    "rmsprop",
    "sgd",
]
