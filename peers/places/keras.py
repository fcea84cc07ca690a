"""Keras 3, on the backend that KERAS_BACKEND names."""

from __future__ import annotations

from peers.places import Places, pairs


def places() -> Places:
    """Where Keras' optimizers are found."""
    import keras

    import isostep.keras
    from isostep.keras.optimizer import FusedApply
    from isostep.keras_api import FusedOptimizer

    return Places(
        pairs=pairs(keras.optimizers, isostep.keras),
        modules=["keras"],
        constructs=[(FusedOptimizer, "__init__")],
        steps=[(FusedApply, "_backend_apply_gradients")],
    )
