"""States of tf_keras and of isostep.tf_keras: prints how far training ends from tf_keras' own."""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

import isostep.tf_keras
from tests.keras_rules import RULES as OTHERS

from .exchange import Way, differences, gradient, tell

OPTIONS: dict[str, Any] = {"weight_decay": 0.0625, "use_ema": True, "ema_momentum": 0.75}
RULES: dict[str, dict[str, Any]] = {rule: {**OPTIONS, **given} for rule, given in OTHERS.items()}
RULES["SGD without momentum"] = {**OPTIONS, "learning_rate": 0.0625, "ema_overwrite_frequency": 7}
BOTH = {"theirs": tf_keras.optimizers, "ours": isostep.tf_keras}


class Training:
    """A model with variables of ranks 1, 2 and 4."""

    def __init__(self, who: str, rule: str) -> None:
        layers = tf_keras.layers
        self.model = tf_keras.Sequential(
            [layers.Input((4, 4, 2)), layers.Conv2D(3, 2), layers.Flatten(), layers.Dense(5)]
        )
        random = np.random.default_rng(0)
        self.take([random.normal(size=v.shape) for v in self.model.trainable_variables])
        self.made = getattr(BOTH[who], rule.split()[0])
        self.model.compile(optimizer=self.made(**RULES[rule], jit_compile=False), loss="mse")

    def run(self, steps: range) -> None:
        variables = self.model.trainable_variables
        for step in steps:
            grads = [tf.constant(gradient(step, k, v.shape)) for k, v in enumerate(variables)]
            self.model.optimizer.apply_gradients(list(zip(grads, variables, strict=True)))

    def values(self) -> list[Any]:
        return [v.numpy() for v in self.model.trainable_variables]

    def take(self, values: list[Any]) -> None:
        for variable, value in zip(self.model.trainable_variables, values, strict=True):
            variable.assign(value)

    def build(self) -> Any:
        self.model.optimizer.build(self.model.trainable_variables)
        return self.model.optimizer


def stored(training: Training) -> dict[str, Any]:
    store: dict[str, Any] = {}
    training.model.optimizer.save_own_variables(store)
    return store


def weights(training: Training) -> list[Any]:
    return [v.numpy() for v in training.model.optimizer.variables]


def file(name: str) -> Way:
    """The model as a file, whose optimizer then hands its configuration and its variables over."""

    def save(training: Training) -> Any:
        folder = tempfile.TemporaryDirectory()
        training.model.save(Path(folder.name) / name)
        return folder

    def load(training: Training, folder: Any) -> None:
        training.model = tf_keras.models.load_model(Path(folder.name) / name)
        loaded = training.model.optimizer
        training.model.optimizer = training.made.from_config(loaded.get_config())
        training.build().set_weights(loaded.variables)

    return Way(save, load)


def weights_file(name: str, saved_by: str = "save_weights", within: str = "") -> Way:
    """A file whose weights, those of the optimizer among them, a model of the other class loads."""

    def save(training: Training) -> Any:
        folder = tempfile.TemporaryDirectory()
        getattr(training.model, saved_by)(str(Path(folder.name) / name))
        return folder

    def load(training: Training, folder: Any) -> None:
        training.build()
        training.model.load_weights(str(Path(folder.name) / name / within))

    return Way(save, load)


def checkpoint(built: bool) -> Way:
    def save(training: Training) -> Any:
        folder = tempfile.TemporaryDirectory()
        state = tf.train.Checkpoint(optimizer=training.model.optimizer)
        return folder, state.save(str(Path(folder.name) / "state"))

    def load(training: Training, saved: Any) -> None:
        if built:
            training.build()
        state = tf.train.Checkpoint(optimizer=training.model.optimizer).restore(saved[1])
        if built:
            state.assert_existing_objects_matched()
            state.assert_consumed()

    return Way(save, load)


WAYS = {
    "store": Way(stored, lambda t, saved: t.build().load_own_variables(saved)),
    "set_weights": Way(weights, lambda t, saved: t.build().set_weights(saved)),
    "checkpoint": checkpoint(built=True),
    "checkpoint before build": checkpoint(built=False),
    "weights": weights_file("state"),
    ".weights.h5": weights_file("state.weights.h5"),
    "weights of .keras": weights_file("model.keras", saved_by="save"),
    ".keras": file("model.keras"),
    ".h5": file("model.h5"),
    # load_model makes a new optimizer of one.
    "weights of SavedModel": weights_file("model", saved_by="save", within="variables/variables"),
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable()
    tf_keras.backend.set_floatx("float64")
    tell(differences(RULES, Training, WAYS))
