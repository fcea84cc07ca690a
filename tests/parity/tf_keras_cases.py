"""The cases of tf_keras: those of Keras 3, and its own."""

from __future__ import annotations

from .case import Case
from .keras_cases import ADADELTA, ADAFACTOR, ADAGRAD, ADAM, RMSPROP, SGD, TWO
from .keras_cases import CASES as OF_KERAS

_DECAY = {"weight_decay": 0.07}  # not a float32, as those of Keras 3 are

CASES = [
    *(case for case in OF_KERAS if not case.quirk),
    Case("adam-adaptive-epsilon", "Adam", ADAM | {"adaptive_epsilon": True}),
    Case("rounded-sgd", "SGD", SGD | _DECAY | {"momentum": 0.8}),
    Case("rounded-adagrad", "Adagrad", ADAGRAD | _DECAY | {"initial_accumulator_value": 0.3}),
    Case("rounded-rmsprop", "RMSprop", RMSPROP | _DECAY | {"momentum": 0.8}),
    Case("rounded-adadelta", "Adadelta", ADADELTA | _DECAY),
    Case("rounded-adam", "Adam", ADAM | _DECAY),
    Case("rounded-adamw", "AdamW", ADAM | _DECAY),
    Case(
        "rounded-adafactor",
        "Adafactor",
        ADAFACTOR | _DECAY | {"epsilon_2": 0.2, "beta_2_decay": -0.7},
        shapes=TWO,
        kernels=("flat", "rows"),
    ),
    Case(
        "rounded-betas",
        "Adam",
        ADAM | {"beta_1": 0.8, "beta_2": 0.95},
        quirk="tf_keras-adam-powers-in-variable-dtype",
        tolerance=1e-6,
    ),
]
