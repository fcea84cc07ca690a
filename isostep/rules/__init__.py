"""The rules: the mathematics of each optimizer, once.

`get("AdamW")` finds a rule by name, `names()` lists them, `register(rule)` adds one of your own,
which then works in every engine, front-end and command.
"""

from __future__ import annotations

from isostep.errors import UnknownNameError, nearest
from isostep.rules.adadelta import ADADELTA
from isostep.rules.adafactor import ADAFACTOR
from isostep.rules.adagrad import ADAGRAD
from isostep.rules.adam import ADAM, ADAMW
from isostep.rules.base import Hyperparameter, Rule, Slot
from isostep.rules.rmsprop import RMSPROP
from isostep.rules.sgd import SGD

__all__ = ["Hyperparameter", "Rule", "Slot", "get", "names", "register"]

_rules: dict[str, Rule] = {
    rule.name: rule for rule in (SGD, ADAGRAD, RMSPROP, ADADELTA, ADAM, ADAMW, ADAFACTOR)
}


def names() -> list[str]:
    """The names of all known rules, the built-in ones first."""
    return list(_rules)


def get(name: str | Rule) -> Rule:
    """The rule called `name`; a `Rule` is returned as it is.

    Raises:
        UnknownNameError: no rule has this name; the message suggests the nearest.
    """
    if isinstance(name, Rule):
        return name
    if name not in _rules:
        raise UnknownNameError(
            f"there is no rule {name!r}{nearest(name, names())} (known: {', '.join(names())})"
        )
    return _rules[name]


def register(rule: Rule) -> Rule:
    """Make `rule` known by its name, so that `get`, the front-ends and the commands find it.

    Raises:
        ValueError: another rule has this name.
    """
    if _rules.setdefault(rule.name, rule) is not rule:
        raise ValueError(f"a rule named {rule.name!r} exists already: give yours another name")
    return rule
