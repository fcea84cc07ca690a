"""A Keras model trained by keras.optimizers.AdamW, and by isostep's: only the import differs.

    KERAS_BACKEND=torch python examples/keras_fit.py      (or jax, or tensorflow)

Both runs start from the same weights and see the same batches of scikit-learn's digits, in float64,
where the bias corrections of Keras' own AdamW are not rounded.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("JAX_ENABLE_X64", "1")

import keras
import numpy as np
from sklearn.datasets import load_digits

import isostep.keras

EPOCHS = 5


def make_model() -> keras.Model:
    """A small convolutional network, the same each time."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )


def fit(adamw: Any) -> list[float]:
    """The loss of each epoch."""
    keras.config.set_floatx("float64")
    digits, labels = load_digits(return_X_y=True)
    images = digits.reshape(-1, 8, 8, 1) / 16.0
    model = make_model()
    optimizer = adamw(2e-3, weight_decay=0.01, global_clipnorm=1.0, use_ema=True)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss)
    history = model.fit(images, labels, batch_size=64, epochs=EPOCHS, shuffle=False, verbose=0)
    return [float(value) for value in history.history["loss"]]


def main() -> float:
    """Print both histories and return how far they are apart."""
    theirs, ours = fit(keras.optimizers.AdamW), fit(isostep.keras.AdamW)
    print(f"{keras.backend.backend()}: epoch  keras.optimizers  isostep.keras")
    for epoch, (a, b) in enumerate(zip(theirs, ours, strict=True)):
        print(f"{epoch + 1:>{len(keras.backend.backend()) + 7}}  {a:16.7f}  {b:13.7f}")
    return float(np.max(np.abs(np.array(theirs) - np.array(ours))))


if __name__ == "__main__":
    print(f"largest difference: {main():.1e}")
