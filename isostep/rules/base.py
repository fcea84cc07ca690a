"""What a rule is: declarations that every other layer reads, and two pure functions.

A rule is the mathematics of one optimizer and nothing else. It declares its hyperparameters (with
ranges) and its slots (with shape and initial value); validation, documentation, the plan, the
checkpoint and the allocation of state all read those declarations. Two functions hold the formulas:
`coefficients` folds the step count into scalars, once per step and group, in float64;
`update` says what is added to a parameter, once per element, in terms of those scalars.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Literal, Protocol

from isostep.errors import HyperparameterError, UnknownNameError, nearest

Domain = Literal["element", "row", "column"]
Slots = Mapping[str, Any]
"""Slot values by name: what a rule reads, and what it returns."""


class Namespace(Protocol):
    """The operations a rule may use beyond `+ - * /` and comparison.

    `mean(x, per=...)` is the mean over everything that shares one `"row"`, `"column"`, `"matrix"`
    or `"tensor"`; the result broadcasts against `x`.
    """

    def inner(self, x: Any, y: Any, /) -> Any:
        """The real part of `x` times the conjugate of `y`: `x * y`, if they are real."""
        ...

    def sqrt(self, x: Any, /) -> Any: ...
    def abs(self, x: Any, /) -> Any: ...
    def sign(self, x: Any, /) -> Any: ...
    def maximum(self, x: Any, y: Any, /) -> Any: ...
    def minimum(self, x: Any, y: Any, /) -> Any: ...
    def where(self, condition: Any, x: Any, y: Any, /) -> Any: ...
    def mean(self, x: Any, *, per: str) -> Any: ...


class Scalars:
    """The namespace of coefficients that are plain Python numbers, as they are on the host."""

    sqrt = staticmethod(math.sqrt)
    log = staticmethod(math.log)
    expm1 = staticmethod(math.expm1)
    minimum = staticmethod(min)
    maximum = staticmethod(max)

    @staticmethod
    def where(condition: Any, x: Any, y: Any) -> Any:
        """`x` if `condition`, else `y`."""
        return x if condition else y


SCALARS = Scalars()


@dataclass(frozen=True)
class Hyperparameter:
    """One number, flag or choice that a user of a rule may set.

    Args:
        name: the field's own word for it, the same in every rule (`lr`, `beta1`, `eps`).
        default: the value of the source that the rule's docstring names.
        meaning: one line for the reference.
        low, high: the closed range of a number; `None` leaves that side open, to all finite
            numbers. Infinity itself is allowed where it is given as a bound.
        open_low, open_high: exclude the bound itself.
        choices: the allowed values of a choice; a choice or a `bool` is static, which means that
            it selects what code is generated, while a number is a run-time argument of that code.
        optional: `None` is allowed and switches the feature off.
    """

    name: str
    default: Any
    meaning: str
    low: float | None = 0.0
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    choices: tuple[str, ...] = ()
    optional: bool = False

    @property
    def static(self) -> bool:
        """Whether the value selects code (a flag or a choice) rather than being read by it."""
        return bool(self.choices) or isinstance(self.default, bool)

    @property
    def range(self) -> str:
        """The allowed values as a reader writes them: `[0, 1)`, `True or False`, `'a' or 'b'`."""
        if self.choices:
            return " or ".join(repr(c) for c in self.choices)
        if isinstance(self.default, bool):
            return "True or False"
        low = "(-inf" if self.low is None else f"{'(' if self.open_low else '['}{self.low:g}"
        high = "inf)" if self.high is None else f"{self.high:g}{')' if self.open_high else ']'}"
        return f"{low}, {high}" + (" or None" if self.optional else "")

    def check(self, value: Any, name: str | None = None) -> Any:
        """Return `value` (numbers as `float`), or raise `HyperparameterError` if out of range.

        A callable passes here, as a function of the step count, and what it gives is checked each
        time it is read. `name` is what the caller's dialect calls this hyperparameter.
        """
        name = name or self.name
        if value is None and self.optional:
            return None
        if self.choices or isinstance(self.default, bool):
            allowed = self.choices or (True, False)
            if not any(value is a or (value == a and type(value) is type(a)) for a in allowed):
                raise HyperparameterError(f"{name}={value!r} is not allowed: use {self.range}")
            return value
        if callable(value):
            return of_step(value)
        try:
            if value is None or isinstance(value, bool | str):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise HyperparameterError(
                f"{name}={value!r} is not a number: it must lie in {self.range}"
            ) from None
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        above = number > low or (number == low and not (self.open_low or self.low is None))
        below = number < high or (number == high and not (self.open_high or self.high is None))
        if not (above and below):  # also refuses NaN, which compares false with everything
            raise HyperparameterError(
                f"{name}={value!r} is out of range: it must lie in {self.range}"
            )
        return number


@dataclass(frozen=True)
class Slot:
    """One state array that a rule keeps for each parameter.

    Args:
        name: the field's word for it (`exp_avg`).
        meaning: one line for the reference.
        per: its shape: one value per `"element"` of the parameter, per `"row"` or per `"column"`.
        initial: the first value: a number, or the name of the hyperparameter that holds it.
        when: whether it exists, given the rule's switches.
        meant_by: the hyperparameters that decide what its numbers mean; a state saved under other
            values of them cannot go on.
    """

    name: str
    meaning: str
    per: Domain = "element"
    initial: float | str = 0.0
    when: Callable[[SimpleNamespace], bool] = field(default=lambda o: True, repr=False)
    meant_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Guard:
    """A coefficient that keeps a denominator away from zero.

    Args:
        coefficient: its name.
        power: what it is added to, or bounds from below, has an absolute error of tau^power if
            numbers below tau, the smallest normal one, are taken for zero: 1 for a mean of
            squares, 1/2 for its root.
        degree: the power of the coefficient that stands there.
    """

    coefficient: str
    power: float = 1.0
    degree: float = 1.0


Guards = tuple[tuple[Guard, ...], ...]
"""Groups of guards; in each of them one suffices."""


def _no_switches(h: SimpleNamespace) -> dict[str, Any]:
    return {}


def _no_factors(shape: tuple[int, ...], h: SimpleNamespace) -> tuple[int, int] | None:
    return None


@dataclass(frozen=True)
class Rule:
    """One optimizer's mathematics with the declarations that the other layers read.

    Args:
        name: the name users know (`"AdamW"`).
        hyperparameters: what can be set. `lr` and `weight_decay` are among them by convention.
        slots: what is kept for each parameter.
        coefficients: `(xp, t, h) -> {name: scalar}`; `t` is the step count, 1 at the first step;
            `h` the hyperparameters; both may be arrays over groups, so `xp.where` and not `if`
            decides on numbers, while flags and choices are plain Python values.
        update: `(xp, g, p, slots, c, o) -> (update, new slots)`; what it returns first is added to
            the parameter.
        switches: `h -> {name: flag}`: what selects code; read by `update` as `o`. The flag
            `factored` is added to them for rules with `factored_axes`.
        factored_axes: `(shape, h) -> (row axis, column axis)` of a tensor that keeps factors, or
            None for one that does not.
        guards: `o -> Guards`: what keeps the rule's divisions away from zero, by which kernels know
            whether they may flush denormal numbers; see `isostep.flushing`. None: nothing is known.
        decay: where weight decay acts unless a dialect or user says otherwise: `"coupled"` adds it
            to the gradient, `"decoupled"` shrinks the parameter.
    """

    name: str
    hyperparameters: tuple[Hyperparameter, ...]
    slots: tuple[Slot, ...]
    coefficients: Callable[[Any, Any, SimpleNamespace], dict[str, Any]] = field(repr=False)
    update: Callable[..., tuple[Any, dict[str, Any]]] = field(repr=False)
    switches: Callable[[SimpleNamespace], dict[str, Any]] = field(default=_no_switches, repr=False)
    factored_axes: Callable[[tuple[int, ...], SimpleNamespace], tuple[int, int] | None] = field(
        default=_no_factors, repr=False
    )
    guards: Callable[[SimpleNamespace], Guards] | None = field(default=None, repr=False)
    decay: Literal["coupled", "decoupled"] = "coupled"

    @property
    def defaults(self) -> dict[str, Any]:
        """The default of each hyperparameter by name."""
        return {h.name: h.default for h in self.hyperparameters}

    def hyperparameter(self, name: str) -> Hyperparameter:
        """The declaration of `name`; raises `UnknownNameError` with the nearest name."""
        for h in self.hyperparameters:
            if h.name == name:
                return h
        known = [h.name for h in self.hyperparameters]
        raise UnknownNameError(
            f"{self.name} has no hyperparameter {name!r}{nearest(name, known)} "
            f"(it has: {', '.join(known)})"
        )

    def active_slots(self, o: SimpleNamespace) -> tuple[Slot, ...]:
        """The slots that exist under the switches `o`."""
        return tuple(s for s in self.slots if s.when(o))


def of_step(value: Callable[..., Any]) -> Callable[[Any], Any]:
    """A schedule as it is; a callable without arguments, which gives the present value, as one."""
    try:
        inspect.signature(value).bind(0)
    except TypeError:
        return lambda step: value()
    except ValueError:  # a callable that does not say what it takes
        pass
    return value


# Hyperparameters that mean the same in several rules are declared once.
LR = Hyperparameter("lr", 1e-3, "learning rate")
SIGNED_LR = replace(LR, low=None)
"""The learning rate where it may end below zero: by rounding, in schedulers of frameworks."""
WEIGHT_DECAY = Hyperparameter("weight_decay", 0.0, "weight decay")


def unit_interval(name: str, default: float, meaning: str, closed: bool = False) -> Hyperparameter:
    """The declaration of a decay rate: a number in [0, 1), or in [0, 1] where `closed`."""
    return Hyperparameter(name, default, meaning, high=1.0, open_high=not closed)


def is_on(value: Any) -> bool:
    """Whether a number that may be switched off (0 or None) is on; a schedule or array always
    is."""
    return bool(value) if value is None or isinstance(value, bool | int | float) else True
