"""What is measured: each rule with its usual options, and one step that does everything at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GLOBAL_NORM = 1.0
EMA_MOMENTUM = 0.999


@dataclass(frozen=True)
class Case:
    """One kind of step.

    Args:
        name: as the command line and the tables spell it.
        rule: isostep's rule.
        hyperparameters: those that are not isostep's and torch's default.
        composite: the gradient is clipped by its global norm and the parameters are averaged.
    """

    name: str
    rule: str
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    composite: bool = False


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case("SGD", "SGD", {"momentum": 0.9}),
        Case("Adagrad", "Adagrad"),
        Case("RMSprop", "RMSprop"),
        Case("Adadelta", "Adadelta"),
        Case("Adam", "Adam"),
        Case("AdamW", "AdamW"),
        Case("Adafactor", "Adafactor"),
        Case("clip+AdamW+EMA", "AdamW", composite=True),
    )
}

LEARNING_RATE = {
    "SGD": 1e-3,
    "Adagrad": 1e-2,
    "RMSprop": 1e-2,
    "Adadelta": 1.0,
    "Adam": 1e-3,
    "AdamW": 1e-3,
    "Adafactor": 1e-2,
}
"""Torch's defaults, given to the peers that have none."""
