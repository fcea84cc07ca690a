"""The hyperparameters of torch's param groups, read anew in each step: any may be edited."""

from __future__ import annotations

from typing import Any

import torch

from isostep import dialects
from isostep.dialects.base import REQUIRED, Spelling
from isostep.errors import HyperparameterError
from isostep.rules.base import SIGNED_LR, Rule, is_on
from isostep.stepper import HyperGroup
from isostep.torch.options import Extras

DECOUPLED = "decoupled_weight_decay"  # Adam's own switch, which a live group may carry


def check_rate(group: dict[str, Any]) -> float:
    """The learning rate of a group.

    Raises:
        HyperparameterError: it is not finite.
    """
    rate = SIGNED_LR.check(_plain(group["lr"]))
    return SIGNED_LR.check(rate * group.get("lr_ratio", 1.0), "lr times lr_ratio")


class Hyperparameters:
    """What a rule reads of param groups.

    Args:
        rule: the rule.
        extras: the options that torch.optim does not have.
    """

    def __init__(self, rule: Rule, extras: Extras) -> None:
        self._rule, self._extras = rule, extras
        self.torch: Spelling = dialects.get("torch").spelling(rule)
        self.style: Spelling = extras.style.spelling(rule)
        names = self.torch.names.items()  # torch asks of its flags whether they are true
        self._flags = {a for h, a in names if isinstance(rule.hyperparameter(h).default, bool)}
        self._foreign = extras.dialect != "torch"

    def raw(self, groups: list[dict[str, Any]]) -> list[list[Any]]:
        """What is set now, to be compared with what was set before."""
        return [
            [
                *self._given(group).values(),
                group.get("maximize"),
                group.get(DECOUPLED),
                group.get("lr_ratio"),
            ]
            for group in groups
        ]

    def groups(self, groups: list[dict[str, Any]]) -> list[HyperGroup]:
        """The groups as a stepper takes them.

        Raises:
            HyperparameterError: a value is out of its range.
        """
        return [
            HyperGroup(
                f"group {index}",
                self.values(group),
                maximize=bool(group.get("maximize")),
                decay=self._decay(group),
            )
            for index, group in enumerate(groups)
        ]

    def values(self, group: dict[str, Any]) -> dict[str, Any]:
        """Every hyperparameter of the rule for one group."""
        given = self._given(group)
        for argument in self.torch.arguments:
            if argument not in given:
                raise KeyError(f"a group has no {argument!r}: add groups by add_param_group")
        rate = check_rate(group)
        given.pop("lr")
        values = self.torch.resolve(self._rule, given)
        if self._foreign:
            values = self._in_style(values)
        return values | {"lr": rate}

    def _given(self, group: dict[str, Any]) -> dict[str, Any]:
        """What the group sets of torch's arguments, as Python numbers and truths."""
        return {
            a: bool(group[a]) if a in self._flags else _plain(group[a])
            for a in self.torch.arguments
            if a in group
        }

    def _in_style(self, values: dict[str, Any]) -> dict[str, Any]:
        """torch's numbers in the form of another dialect."""
        style = self.style
        used = {
            name: values[name]
            for name in self.torch.names
            if name not in style.without_effect
            and (values[name] is not None or name in style.none_is_machine_epsilon)
        }
        new = {**style.canonical_defaults(self._rule), **used, **style.fixed}
        missing = [name for name, value in new.items() if value is REQUIRED]
        if missing:
            raise HyperparameterError(
                f"dialect={self._extras.dialect!r} needs {missing[0]}, which torch.optim has no "
                f"argument for"
            )
        return new

    def _decay(self, group: dict[str, Any]) -> Any:
        """Where decay acts, if this group or the user says so."""
        if self._extras.decay is not None or DECOUPLED not in group:
            return self._extras.decay
        if group[DECOUPLED]:
            return "decoupled"
        return None if self._foreign else "coupled"

    def code(self, group: HyperGroup) -> Any:
        """What of a group selects code."""
        static = [v for k, v in group.values.items() if self._rule.hyperparameter(k).static]
        on = [is_on(v) for v in group.values.values()]
        return (static, on, group.maximize, group.decay)


def _plain(value: Any) -> Any:
    """Hyperparameters as Python numbers: torch takes tensors for some."""
    if isinstance(value, torch.Tensor):
        return float(value.detach())
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    return value
