"""The seven rules with hyperparameters off their defaults, as both Keras spell them."""

from __future__ import annotations

from typing import Any

RULES: dict[str, dict[str, Any]] = {
    "SGD": {"learning_rate": 0.0625, "momentum": 0.75, "nesterov": True},
    "Adagrad": {"learning_rate": 0.25, "initial_accumulator_value": 0.25, "epsilon": 1e-3},
    "RMSprop": {"learning_rate": 0.0625, "rho": 0.75, "momentum": 0.5, "centered": True},
    "Adadelta": {"learning_rate": 0.5, "rho": 0.75, "epsilon": 1e-3},
    "Adam": {"learning_rate": 0.0625, "beta_1": 0.75, "beta_2": 0.9375, "amsgrad": True},
    "AdamW": {
        "learning_rate": 0.0625,
        "beta_1": 0.75,
        "beta_2": 0.9375,
        "epsilon": 2**-10,
        "weight_decay": 0.125,
    },
    "Adafactor": {"learning_rate": 0.25, "clip_threshold": 0.75, "epsilon_1": 1e-4},
}
