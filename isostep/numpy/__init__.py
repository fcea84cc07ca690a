"""The NumPy front-end: optimizers over dicts and lists of arrays, updated in place."""

from __future__ import annotations

from isostep.numpy.named import (
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    AdamW,
    RMSprop,
)
from isostep.numpy.optimizer import DEFAULT_GROUP, Optimizer

__all__ = [
    "DEFAULT_GROUP",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Optimizer",
    "RMSprop",
]
