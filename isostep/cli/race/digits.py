"""The default task: a small multilayer perceptron on scikit-learn's handwritten digits.

1,797 images of 8 x 8 pixels in ten classes come with scikit-learn, so the race needs no download.
The gradients are written by hand in NumPy, so it needs no framework.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from isostep.cli.race.task import Params

CLASSES = 10


class Batch(NamedTuple):
    """Images as rows of standardised pixels, and their classes 0..9."""

    pixels: np.ndarray
    labels: np.ndarray


class Split(NamedTuple):
    """The fixed division of the images: 1,437 to train on, 360 to validate on."""

    train: Batch
    validation: Batch


@dataclass(frozen=True)
class Digits:
    """ReLU layers and a softmax, trained on the mean cross entropy.

    Args:
        hidden: widths of the hidden layers.
        batch_size: images per step, 1..1437.
        dtype: of parameters, pixels and gradients.
    """

    hidden: tuple[int, ...] = (128,)
    batch_size: int = 64
    dtype: str = "float32"
    name: str = "digits"

    @property
    def config(self) -> dict[str, object]:
        """What determines the numbers besides this file's text."""
        return {"hidden": list(self.hidden), "batch_size": self.batch_size, "dtype": self.dtype}

    @cached_property
    def split(self) -> Split:
        """The images, split by class with a fixed seed, standardised by the training pixels."""
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
        from sklearn.preprocessing import StandardScaler

        images, labels = map(np.asarray, load_digits(return_X_y=True))
        train, validation = train_test_split(
            np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
        )
        pixels = StandardScaler().fit(images[train]).transform(images)
        pixels = np.asarray(pixels, dtype=self.dtype)
        return Split(
            Batch(pixels[train], labels[train]), Batch(pixels[validation], labels[validation])
        )

    @property
    def layers(self) -> list[str]:
        """Names of the layers, from the pixels to the classes."""
        return [*(f"hidden{index}" for index, _ in enumerate(self.hidden, start=1)), "output"]

    def initial_parameters(self, seed: int) -> Params:
        """Return He-normal weights (inputs x outputs) and zero biases; `seed` >= 0."""
        random = np.random.default_rng([seed, 0])
        widths = [self.split.train.pixels.shape[1], *self.hidden, CLASSES]
        params: Params = {}
        for layer, (inputs, outputs) in zip(self.layers, pairwise(widths), strict=True):
            weight = random.normal(scale=np.sqrt(2 / inputs), size=(inputs, outputs))
            params[f"{layer}.weight"] = weight.astype(self.dtype)
            params[f"{layer}.bias"] = np.zeros(outputs, self.dtype)
        return params

    def batches(self, seed: int, steps: int) -> Iterator[Batch]:
        """Yield `steps` batches: shuffled sweeps over the training images, without leftovers.

        Until the last is taken, matrices are multiplied by one thread: these are too small to
        share, and threads that wait for each other make a busy machine many times slower.
        """
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1, user_api="blas"):
            yield from self._batches(seed, steps)

    def _batches(self, seed: int, steps: int) -> Iterator[Batch]:
        random = np.random.default_rng([seed, 1])
        pixels, labels = self.split.train
        per_sweep = len(labels) // self.batch_size
        order = random.permutation(len(labels))
        for step in range(steps):
            start = step % per_sweep * self.batch_size
            if step > 0 and start == 0:
                order = random.permutation(len(labels))
            chosen = order[start : start + self.batch_size]
            yield Batch(pixels[chosen], labels[chosen])

    def loss_and_gradients(self, params: Params, batch: Batch) -> tuple[float, Params]:
        """Return the mean cross entropy over `batch` and its gradient by the chain rule."""
        inputs, logits = self._forward(params, batch.pixels)
        log_probability = log_softmax(logits)
        rows = np.arange(len(batch.labels))
        loss = -log_probability[rows, batch.labels].mean()

        upstream = np.exp(log_probability)
        upstream[rows, batch.labels] -= 1
        upstream /= len(rows)
        gradients: Params = {}
        for layer, entering in reversed(list(zip(self.layers, inputs, strict=True))):
            gradients[f"{layer}.weight"] = entering.T @ upstream
            gradients[f"{layer}.bias"] = upstream.sum(axis=0)
            upstream = (upstream @ params[f"{layer}.weight"].T) * (entering > 0)
        return float(loss), gradients

    def validate(self, params: Params) -> dict[str, float]:
        """Return mean cross entropy and share of right answers on the validation images."""
        pixels, labels = self.split.validation
        log_probability = log_softmax(self._forward(params, pixels)[1])
        loss = -log_probability[np.arange(len(labels)), labels].mean(dtype=np.float64)
        right = log_probability.argmax(axis=1) == labels
        return {"loss": float(loss), "accuracy": float(right.mean())}

    def _forward(self, params: Params, pixels: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Return what enters each layer, and the logits that leave the last."""
        inputs = [pixels]
        for layer in self.layers:
            out = inputs[-1] @ params[f"{layer}.weight"] + params[f"{layer}.bias"]
            inputs.append(np.maximum(out, 0) if layer != "output" else out)
        return inputs[:-1], inputs[-1]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the logarithm of the softmax of each row, without overflow."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
