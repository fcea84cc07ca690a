"""What a dialect is: data that says how a framework spells the rules, and how that data is read.

Dialects stand just above the rules. A `Spelling` is one framework's class for one rule; a `Dialect`
is all of a framework's spellings and what it does around a rule: clipping, averaging, counting.
The five modules beside this one hold nothing but such data; no code here asks for a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from isostep import rules
from isostep.errors import HyperparameterError, UnknownNameError, nearest
from isostep.rules import Rule
from isostep.rules.base import of_step

ClipKind = Literal["value", "norm", "global_norm"]
CLIP_KINDS: tuple[ClipKind, ...] = ("value", "norm", "global_norm")


class _Required:
    """The type of `REQUIRED`."""

    def __repr__(self) -> str:
        return "required"


REQUIRED: Any = _Required()
"""Stands where a framework has no default, so that the user must give a value."""


def _nothing() -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Spelling:
    """How one framework spells one rule.

    Args:
        rule: name of the rule.
        class_name: name of the framework's class or function.
        names: hyperparameter -> the framework's argument. `"betas[0]"` is the first of a pair
            passed as one argument `betas`.
        defaults: hyperparameter -> default, in the framework's own words: negated and None exactly
            as its signature has them; `REQUIRED` where it has none.
        fixed: hyperparameter -> the value that makes the rule take this framework's form.
        negated: hyperparameters whose argument has the other sign (of a flag: the other truth).
        none_means: hyperparameter -> the value that the framework's None stands for.
        none_is_machine_epsilon: hyperparameters for which None is kept by `resolve` and stands for
            `finfo(dtype of the parameter).eps`.
        without_effect: hyperparameters that the framework takes and never uses: whatever is
            given, they keep the value that they have by default.
        unsupported: argument -> the only value that isostep allows: a part of the framework's
            mathematics that the rule does not have.
        in_float32: hyperparameters that the framework rounds to float32 also for float64 arrays.
        slots: slot of the rule -> the framework's name for it.
        decay: where weight decay acts.
        decay_times_lr: decoupled decay is multiplied by the learning rate.
        decay_first: the rule sees the parameter after its decay.
        average_every: default number of steps between overwrites of the parameter by its moving
            average.
        formula: the update in one line of text.
        quirks: `"name: what happens"`, each the framework's own behaviour that a reader of the
            formula would not expect.
    """

    rule: str
    class_name: str
    names: Mapping[str, str]
    defaults: Mapping[str, Any]
    slots: Mapping[str, str]
    formula: str
    fixed: Mapping[str, Any] = field(default_factory=_nothing)
    negated: tuple[str, ...] = ()
    none_means: Mapping[str, Any] = field(default_factory=_nothing)
    none_is_machine_epsilon: tuple[str, ...] = ()
    without_effect: tuple[str, ...] = ()
    unsupported: Mapping[str, Any] = field(default_factory=_nothing)
    in_float32: tuple[str, ...] = ()
    decay: Literal["coupled", "decoupled"] = "coupled"
    decay_times_lr: bool = True
    decay_first: bool = False
    average_every: int | None = None
    quirks: tuple[str, ...] = ()

    @property
    def arguments(self) -> dict[str, tuple[str, ...]]:
        """The framework's arguments, each with its one hyperparameter or its pair of them."""
        arguments: dict[str, tuple[str, ...]] = {}
        for name, spelled in self.names.items():
            argument = spelled.partition("[")[0]
            arguments[argument] = (*arguments.get(argument, ()), name)
        return arguments

    def canonical_defaults(self, rule: Rule) -> dict[str, Any]:
        """What `resolve` starts from: every hyperparameter as the rule reads it, or `REQUIRED`."""
        own = {
            name: value
            if value is REQUIRED
            else self._read(rule, name, value, self.names.get(name, name))
            for name, value in self.defaults.items()
        }
        return {**rule.defaults, **own, **self.fixed}

    def resolve(self, rule: Rule, given: Mapping[str, Any]) -> dict[str, Any]:
        """Every hyperparameter of the rule: its default, this framework's, or what was given.

        Args:
            rule: the rule, as `isostep.rules.get(self.rule)`.
            given: what the user set, under the rule's names or under the framework's. A value
                under a framework's name has that framework's sign.

        Returns:
            The values by the rule's names, in the rule's order: numbers as `float`, schedules as
            they are, None where a feature is off or a name is in `none_is_machine_epsilon`.

        Raises:
            UnknownNameError: a name is in neither vocabulary; the message has the nearest.
            HyperparameterError: a value is out of range or is not a pair where one is needed, a
                hyperparameter is given twice, or one without default is not given.
        """
        values = self.canonical_defaults(rule) | self._chosen(rule, given)
        for name, value in values.items():
            if value is REQUIRED:
                argument = self.names.get(name, name)
                raise HyperparameterError(f"{self.class_name} needs {argument}: it has no default")
        return values

    def _chosen(self, rule: Rule, given: Mapping[str, Any]) -> dict[str, Any]:
        """What was given, by the rule's names; see `resolve`."""
        shown: dict[str, str] = {}
        chosen: dict[str, Any] = {}
        for key, value in given.items():
            for name, argument, part in self._parts(rule, key, value):
                if name in shown:
                    raise HyperparameterError(
                        f"{self.class_name}: {shown[name]} and {argument} are the same "
                        "hyperparameter: give one of them"
                    )
                shown[name] = argument
                chosen[name] = self._read(rule, name, part, argument)
        return {name: value for name, value in chosen.items() if name not in self.without_effect}

    def changed(
        self, rule: Rule, values: Mapping[str, Any], given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Resolved `values` with what is given, in either vocabulary, in place of theirs."""
        return {**values, **self._chosen(rule, given)}

    def _parts(self, rule: Rule, key: str, value: Any) -> list[tuple[str, str, Any]]:
        """What one given name sets, as (hyperparameter, name it was given under, value)."""
        names = self.arguments.get(key, (key,))
        if key in self.unsupported:
            if value != self.unsupported[key]:
                raise HyperparameterError(
                    f"{self.class_name}: {key}={value!r} is not supported: "
                    f"use {self.unsupported[key]!r} or leave it out"
                )
            return []
        if names == (key,) and key not in rule.defaults:
            raise UnknownNameError(self._unknown(rule, key))
        if len(names) == 1:
            return [(names[0], key, value)]
        parts = tuple(cast(Iterable[Any], value)) if isinstance(value, Iterable) else ()
        if len(parts) != len(names):
            raise HyperparameterError(
                f"{key}={value!r} is not allowed: give {len(names)} values, {', '.join(names)}"
            )
        return [(name, self.names[name], part) for name, part in zip(names, parts, strict=True)]

    def _unknown(self, rule: Rule, key: str) -> str:
        arguments = [*self.arguments, *self.unsupported]
        own = [name for name in rule.defaults if name not in arguments]
        return (
            f"{self.class_name} has no hyperparameter {key!r}{nearest(key, [*arguments, *own])} "
            f"(it has: {', '.join(arguments)}; and by isostep's own names: {', '.join(own)})"
        )

    def _read(self, rule: Rule, name: str, value: Any, argument: str) -> Any:
        """The checked value of a hyperparameter that was given as `argument`."""
        if value is None:
            if name in self.none_is_machine_epsilon:
                return None
            if name in self.none_means:
                return self.none_means[name]
        if argument != name and name in self.negated:
            value, argument = negative(value), f"-{argument}"
        return rule.hyperparameter(name).check(value, argument)


def negative(value: Any) -> Any:
    """The other sign of a number or of a schedule, the other truth of a flag, else `value`."""
    if isinstance(value, bool):
        return not value
    if callable(value):
        schedule = of_step(cast(Callable[..., Any], value))

        def opposite(step: Any) -> Any:
            return -schedule(step)

        return opposite
    try:
        return -value
    except TypeError:  # not a number: the check that follows says so
        return value


@dataclass(frozen=True)
class Averaging:
    """A framework's moving average of the parameters, by default.

    Args:
        momentum: decay rate of the average.
        start: `"initial"`: from the parameter before the first step; `"first_update"`: from the
            one after it.
        formula: one line of text.
        without_gradient: parameters that had no gradient in a step are averaged as well.
    """

    momentum: float
    start: Literal["initial", "first_update"]
    formula: str
    without_gradient: bool


@dataclass(frozen=True)
class PartGroup:
    """Where an optimizer that spreads parameters over processes says over which.

    Args:
        group: the attribute that is the process group.
        device: the attribute that says where that has tensors.
        unless: the attribute that is true if the processes do not step all at once.
    """

    group: str
    device: str
    unless: str


@dataclass(frozen=True)
class Dialect:
    """How one framework spells all rules, and what it does around them.

    Args:
        name: the dialect's name.
        spellings: rule -> its spelling; or name of a second class of the framework -> its spelling
            (Paddle's `Momentum`, optax's `amsgrad`).
        absent: rule -> why the framework has no spelling of it, and who has.
        clip_formulas: kind of clipping -> what it does to a gradient `g`, in one line of text.
        clip_eps: what is added to a norm before the threshold is divided by it.
        inf_norm_is_nan: kinds of clipping that turn every element NaN if the norm is infinite.
        averaging: the moving average of parameters.
        complex_moduli: complex parameters are stepped as complex numbers, and their squares and
            norms are of absolute values; else the framework has no complex parameters, or takes
            them for pairs of real ones.
        schedule_counts: state of the framework that counts steps for one schedule -> the
            hyperparameter that the schedule gives.
        steps_per: what has a step count of its own: each `"parameter"`, or the `"optimizer"`.
        other_arguments: arguments of the framework's classes that are not hyperparameters of a
            rule; front-ends read them.
        extension_points: methods of the framework's classes that its own step calls, which users
            may override, and which the fused step replaces.
        shard_marks: attribute of a parameter that is one process's part of a larger one -> whose.
        part_holders: classes of optimizers that step a part of their parameters by another one.
        part_groups: those among them whose processes step all at once, each its own parameters ->
            where they say which processes.
        quirks: `"name: what happens"`, for all rules.
    """

    name: str
    spellings: Mapping[str, Spelling]
    clip_formulas: Mapping[ClipKind, str]
    averaging: Averaging
    steps_per: Literal["parameter", "optimizer"]
    clip_eps: float = 0.0
    inf_norm_is_nan: tuple[ClipKind, ...] = ()
    complex_moduli: bool = False
    schedule_counts: Mapping[str, str] = field(default_factory=_nothing)
    absent: Mapping[str, str] = field(default_factory=_nothing)
    other_arguments: tuple[str, ...] = ()
    extension_points: tuple[str, ...] = ()
    shard_marks: Mapping[str, str] = field(default_factory=_nothing)
    part_holders: tuple[str, ...] = ()
    part_groups: Mapping[str, PartGroup] = field(default_factory=_nothing)
    quirks: tuple[str, ...] = ()

    def spelling(self, name: str | Rule) -> Spelling:
        """The spelling of a rule.

        A rule that no framework has, registered by a user, is spelled as it declares itself.

        Args:
            name: a rule, its name, or the name of this framework's class.

        Raises:
            UnknownNameError: there is no such rule or class, or this framework has none.
        """
        key = name.name if isinstance(name, Rule) else name
        if not isinstance(key, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UnknownNameError(
                f"a rule is given as a Rule or by its name, such as 'AdamW', not as "
                f"{getattr(key, '__name__', type(key).__name__)}"
            )
        if key in self.spellings:
            return self.spellings[key]
        if key in self.absent:
            raise UnknownNameError(self.absent[key])
        for spelling in self.spellings.values():
            if spelling.class_name == key:
                return spelling
        if isinstance(name, Rule) or key in rules.names():
            return as_declared(rules.get(name))
        known = list(dict.fromkeys([*self.spellings, *rules.names()]))
        raise UnknownNameError(
            f"the {self.name} dialect has no rule {key!r}{nearest(key, known)} "
            f"(known: {', '.join(known)})"
        )

    def extended(self, **spellings: Spelling) -> Dialect:
        """This dialect with more spellings, or others: for a rule that the framework lacks."""
        absent = {name: why for name, why in self.absent.items() if name not in spellings}
        return replace(self, spellings={**self.spellings, **spellings}, absent=absent)


def as_declared(rule: Rule) -> Spelling:
    """The spelling of a rule in its own words."""
    return Spelling(
        rule=rule.name,
        class_name=rule.name,
        names={name: name for name in rule.defaults},
        defaults=rule.defaults,
        slots={slot.name: slot.name for slot in rule.slots},
        formula=f"the rule {rule.name} as declared",
        decay=rule.decay,
    )
