"""Keras 3, on the backend that KERAS_BACKEND names."""

from __future__ import annotations

from peers.places import Places, pairs

CONSTRUCTS = ["isostep.keras_api:FusedOptimizer.__init__"]
STEPS = ["isostep.keras.optimizer:FusedApply._backend_apply_gradients"]


def places() -> Places:
    """Where Keras' optimizers are found."""
    import keras

    import isostep.keras

    return Places(
        pairs=pairs(keras.optimizers, isostep.keras),
        modules=["keras"],
        constructs=CONSTRUCTS,
        steps=STEPS,
    )
