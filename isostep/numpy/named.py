"""One class for each built-in rule."""

from __future__ import annotations

from typing import Any

from isostep import rules
from isostep.numpy.optimizer import Optimizer
from isostep.rules.base import Rule


class _Named(Optimizer):
    """An optimizer whose rule is its class."""

    _rule: str

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(self._rule, params, **options)


def _documented(rule: Rule) -> str:
    described = "\n".join(
        f"        {h.name}: {h.meaning}, in {h.range}." for h in rule.hyperparameters
    )
    return (
        f"{rule.name} over NumPy arrays, updated in place.\n\n"
        f"    Args:\n        params: see `Optimizer`, which also lists the options.\n{described}\n"
    )


class SGD(_Named):
    _rule = "SGD"
    __doc__ = _documented(rules.get(_rule))


class Adagrad(_Named):
    _rule = "Adagrad"
    __doc__ = _documented(rules.get(_rule))


class RMSprop(_Named):
    _rule = "RMSprop"
    __doc__ = _documented(rules.get(_rule))


class Adadelta(_Named):
    _rule = "Adadelta"
    __doc__ = _documented(rules.get(_rule))


class Adam(_Named):
    _rule = "Adam"
    __doc__ = _documented(rules.get(_rule))


class AdamW(_Named):
    _rule = "AdamW"
    __doc__ = _documented(rules.get(_rule))


class Adafactor(_Named):
    _rule = "Adafactor"
    __doc__ = _documented(rules.get(_rule))
