"""States of keras.optimizers and of isostep.keras, on the backend that `KERAS_BACKEND` says: prints
how far training ends from Keras' own."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

import isostep.keras
from tests.keras_rules import RULES as OTHERS

from .exchange import Way, differences, gradient, tell

OPTIONS: dict[str, Any] = {"weight_decay": 0.0625, "use_ema": True, "ema_momentum": 0.75}
RULES: dict[str, dict[str, Any]] = {rule: {**OPTIONS, **given} for rule, given in OTHERS.items()}
RULES["SGD without momentum"] = {**OPTIONS, "learning_rate": 0.0625, "ema_overwrite_frequency": 7}
BOTH = {"theirs": keras.optimizers, "ours": isostep.keras}


class Training:
    """A model with variables of ranks 1, 2 and 4."""

    def __init__(self, who: str, rule: str) -> None:
        layers = keras.layers
        self.model: Any = keras.Sequential(
            [layers.Input((4, 4, 2)), layers.Conv2D(3, 2), layers.Flatten(), layers.Dense(5)]
        )
        random = np.random.default_rng(0)
        self.take([random.normal(size=v.shape) for v in self.model.trainable_variables])
        self.made = getattr(BOTH[who], rule.split()[0])
        self.model.compile(optimizer=self.made(**RULES[rule]), loss="mse")

    def run(self, steps: range) -> None:
        variables = self.model.trainable_variables
        for step in steps:
            grads = [
                keras.ops.convert_to_tensor(gradient(step, k, v.shape))
                for k, v in enumerate(variables)
            ]
            self.model.optimizer.apply(grads, variables)

    def values(self) -> list[Any]:
        return [np.array(v) for v in map(keras.ops.convert_to_numpy, self._trained)]

    def take(self, values: list[Any]) -> None:
        for variable, value in zip(self._trained, values, strict=True):
            variable.assign(value)

    def build(self) -> Any:
        self.model.optimizer.build(self._trained)
        return self.model.optimizer

    @property
    def _trained(self) -> list[Any]:
        return self.model.trainable_variables


def stored(training: Training) -> dict[str, Any]:
    store: dict[str, Any] = {}
    training.model.optimizer.save_own_variables(store)
    return store


def file(name: str) -> Way:
    """The model as a file, read with isostep's class in the place of Keras'; the other way the
    optimizer hands its configuration and its state over."""

    def save(training: Training) -> Any:
        folder = tempfile.TemporaryDirectory()
        training.model.save(Path(folder.name) / name)
        return folder

    def load(training: Training, folder: Any) -> None:
        names = {training.made.__name__: training.made}
        model = keras.models.load_model(Path(folder.name) / name, custom_objects=names)
        training.model, loaded = model, model.optimizer
        if not isinstance(loaded, training.made):  # isostep's class is loaded as what it is
            model.optimizer = training.made.from_config(loaded.get_config())
            store: dict[str, Any] = {}
            loaded.save_own_variables(store)
            training.build().load_own_variables(store)

    return Way(save, load)


def weights_file(name: str, saved_by: str = "save_weights") -> Way:
    """A file whose weights, those of the optimizer among them, a model of the other class loads."""

    def save(training: Training) -> Any:
        folder = tempfile.TemporaryDirectory()
        getattr(training.model, saved_by)(str(Path(folder.name) / name))
        return folder

    def load(training: Training, folder: Any) -> None:
        training.build()
        training.model.load_weights(str(Path(folder.name) / name))

    return Way(save, load)


def checkpoint() -> Way:
    """A checkpoint of TensorFlow's."""
    import tensorflow as tf

    def save(training: Training) -> Any:
        folder = tempfile.TemporaryDirectory()
        state = tf.train.Checkpoint(optimizer=training.model.optimizer)
        return folder, state.save(str(Path(folder.name) / "state"))

    def load(training: Training, saved: Any) -> None:
        state = tf.train.Checkpoint(optimizer=training.build()).restore(saved[1])
        state.assert_existing_objects_matched()
        state.assert_consumed()

    return Way(save, load)


WAYS = {
    "store": Way(stored, lambda t, saved: t.build().load_own_variables(saved)),
    ".keras": file("model.keras"),
}
MORE_WAYS = {
    "set_weights": Way(
        lambda t: list(stored(t).values()), lambda t, saved: t.build().set_weights(saved)
    ),
    ".weights.h5": weights_file("state.weights.h5"),
    "weights of .keras": weights_file("model.keras", saved_by="save"),
}
OF_MORE_WAYS = ("SGD without momentum", "Adam", "Adafactor")

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    keras.config.set_floatx("float64")
    if keras.backend.backend() == "tensorflow":
        MORE_WAYS["checkpoint"] = checkpoint()
    found = differences(RULES, Training, WAYS)
    tell(found | differences(OF_MORE_WAYS, Training, MORE_WAYS))
