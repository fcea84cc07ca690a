"""What an optimizer is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isostep.dialects import Dialect, Spelling
from isostep.groups import Group
from isostep.jax.native import Engine
from isostep.jax.own import Own
from isostep.rules import Rule
from isostep.stepper import Options

Mask = Callable[[Any], Any] | Any

KEPT = {"ema", "master_weights", "report", "groups", "state_dtype"}
"""Arguments that a state of optax has no place for."""


@dataclass(frozen=True)
class Made:
    """What an optimizer was made of.

    Args:
        rule, dialect, spelling: the mathematics and how it is arranged.
        values: hyperparameters by the rule's names; arrays stand in functions of the step count.
        groups: hyperparameters of some parameters, their values by the rule's names, and the factor
            on their learning rate.
        options: what a step does besides the rule.
        mask: the tree of truths, or the function that makes it, of what decays; None: everything.
        engine: what runs `apply`.
        own: optax' transformation of the same arguments, if there is one.
        extras: the arguments that optax does not have and were given.
    """

    rule: Rule
    dialect: Dialect
    spelling: Spelling
    values: Mapping[str, Any]
    groups: Sequence[tuple[Group, Mapping[str, Any], Any]]
    options: Options
    mask: Mask = None
    engine: Engine = "auto"
    own: Own | None = None
    extras: Sequence[str] = ()

    @property
    def keeps_more(self) -> bool:
        """Whether optax' state has no place for all that is kept."""
        return self.own is None or not KEPT.isdisjoint(self.extras)

    def called(self, slot: str) -> str:
        """The dialect's name of a slot."""
        return self.spelling.slots.get(slot, slot)
