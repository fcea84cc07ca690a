"""Schedules: hyperparameters as functions of the step count.

A schedule stands where a number could: front-ends accept one as `lr`, and the step asks it for the
value before coefficients are computed. It is called with `t`, the number of updates already done,
so the first step reads `t = 0`. Given a Python integer it answers with a float64 Python float;
given an array and its namespace (`schedule(t, jax.numpy)`) it is plain array code without a branch
on `t`, so the same text is traced under jit. Every schedule is an immutable value: equal when its
arguments are, and rebuilt from its JSON-safe configuration.

A namespace needs `where`, `cos`, `sqrt`, `floor` and the operators. An array `t` holds integers
>= 0; integer dtypes become the namespace's default floating dtype, except in TensorFlow, which
promotes nothing: cast the count to float64 there.
"""

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from itertools import pairwise
from typing import Any, Literal, cast, overload

import numpy as np

from isostep.errors import HyperparameterError, UnknownNameError, nearest

_KIND = "schedule"  # the key of a configuration that holds the class name


@dataclass(frozen=True)
class Schedule(ABC):
    """What all schedules share: the call, the configuration and equality by value."""

    @overload
    def __call__(self, t: int) -> float: ...
    @overload
    def __call__(self, t: Any, xp: Any = ...) -> Any: ...
    def __call__(self, t: Any, xp: Any = np) -> Any:
        """Return the value for step `t`.

        Args:
            t: the count of completed updates, an integer >= 0 or an array of them.
            xp: the namespace of `t`: `numpy`, `jax.numpy` or another one.

        Returns:
            A Python float for an integer and NumPy, else what `xp` makes of `t`: an array of its
            shape.

        Raises:
            HyperparameterError: `t` is a negative integer, or the value of a growing schedule is
                too large for float64 (in an array it is `inf`).
        """
        is_integer = isinstance(t, numbers.Integral)
        if is_integer and t < 0:
            raise HyperparameterError(f"the step count must be an integer >= 0, got {t}")
        if not is_integer or xp is not np:
            return self._at(t / 1.0, xp)  # of all promotions to floating point the most portable
        try:
            return float(self._at(float(t), _Scalars))
        except OverflowError:
            raise HyperparameterError(f"{self} is too large for float64 at step {t}") from None

    @abstractmethod
    def _at(self, t: Any, xp: Any) -> Any:
        """Return the value at the floating-point count `t`, whatever shape it has."""

    def get_config(self) -> dict[str, Any]:
        """Return a JSON-safe dict from which `from_config` rebuilds this schedule."""
        arguments = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        return {_KIND: type(self).__name__, **arguments}


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value at every step.

    Args:
        value: any finite number.

    Raises:
        HyperparameterError: the value is not a finite number.
    """

    value: float

    def __post_init__(self) -> None:
        _settle(self, value=_FINITE)

    def _at(self, t: Any, xp: Any) -> Any:
        return self.value + 0.0 * t  # takes the shape and dtype of t


@dataclass(frozen=True)
class LinearWarmup(Schedule):
    """A straight line from `start` to `peak`, which then holds.

    `start + (peak - start) * min(t / steps, 1)`

    Args:
        peak: the value from step `steps` on; finite.
        steps: the length of the warm-up in updates; an integer >= 1.
        start: the value at the first step; finite.

    Raises:
        HyperparameterError: an argument is out of its range.

    Source: the gradual warm-up of arXiv:1706.02677, section 2.2; optax `linear_schedule`.
    """

    peak: float
    steps: int
    start: float = 0.0

    def __post_init__(self) -> None:
        _settle(self, peak=_FINITE, steps=_COUNT, start=_FINITE)

    def _at(self, t: Any, xp: Any) -> Any:
        return _mix(self.start, self.peak, _progress(t, 0, self.steps, xp))


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine wave from `peak` down to `end`, which then holds.

    `end + (peak - end) * (1 + cos(pi * min(t / steps, 1))) / 2`

    Args:
        peak: the value at the first step; finite.
        steps: the length of the decay in updates; an integer >= 1.
        end: the value from step `steps` on; finite.

    Raises:
        HyperparameterError: an argument is out of its range.

    Source: SGDR, arXiv:1608.03983, equation 5, without restarts; optax `cosine_decay_schedule`.
    PyTorch's `CosineAnnealingLR` rises again after `T_max`; this one does not.
    """

    peak: float
    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        _settle(self, peak=_FINITE, steps=_COUNT, end=_FINITE)

    def _at(self, t: Any, xp: Any) -> Any:
        return _mix(self.peak, self.end, _cosine(_progress(t, 0, self.steps, xp), xp))


@dataclass(frozen=True)
class Exponential(Schedule):
    """Multiplied by `decay_rate` every `decay_steps` updates, down (or up) to `end`.

    `initial * decay_rate ** (t / decay_steps)`; with `staircase` the exponent is rounded down.

    Args:
        initial: the value at the first step; > 0.
        decay_rate: the factor; > 0. Above 1 the value grows.
        decay_steps: the updates in which the factor is applied once; an integer >= 1.
        staircase: apply the factor at every `decay_steps`-th update instead of gradually.
        end: where the value stops: between 0 and `initial` for a `decay_rate` below 1, at least
            `initial` otherwise. None for no bound.

    Raises:
        HyperparameterError: an argument is out of its range.

    Source: optax `exponential_decay`; Keras `ExponentialDecay`, which has no `end`.
    """

    initial: float
    decay_rate: float
    decay_steps: int = 1
    staircase: bool = False
    end: float | None = None

    def __post_init__(self) -> None:
        _settle(self, initial=_POSITIVE, decay_rate=_POSITIVE, decay_steps=_COUNT, staircase=_flag)
        if self.end is None:
            return
        _settle(self, end=_NOT_NEGATIVE)
        falls = self.decay_rate < 1.0
        if (self.end > self.initial) if falls else (self.end < self.initial):
            raise HyperparameterError(
                f"Exponential: end must be {'<=' if falls else '>='} initial ({self.initial}) "
                f"when decay_rate is {self.decay_rate}, got {self.end}"
            )

    def _at(self, t: Any, xp: Any) -> Any:
        exponent = _periods(t, self.decay_steps, self.staircase, xp)
        if self.end is None:
            return self.initial * self.decay_rate**exponent
        # Growth is stopped in the exponent, not after the power, which would overflow on the way.
        reach = self._periods_to(self.end)
        value = self.initial * self.decay_rate ** xp.where(exponent < reach, exponent, 0.0)
        beyond = value < self.end if self.decay_rate < 1.0 else value > self.end
        return xp.where(exponent < reach, xp.where(beyond, self.end, value), self.end)

    def _periods_to(self, end: float) -> float:
        if end == 0.0 or self.decay_rate == 1.0:
            return math.inf
        return (math.log(end) - math.log(self.initial)) / math.log(self.decay_rate)


@dataclass(frozen=True)
class Polynomial(Schedule):
    """A power curve from `initial` to `end`, which then holds.

    `end + (initial - end) * (1 - min(t / steps, 1)) ** power`

    Args:
        initial: the value at the first step; finite.
        end: the value from step `steps` on; finite.
        steps: the length of the decay in updates; an integer >= 1.
        power: > 0; 1 is a straight line.

    Raises:
        HyperparameterError: an argument is out of its range.

    Source: optax `polynomial_schedule`; Keras `PolynomialDecay` with `cycle=False`.
    """

    initial: float
    end: float
    steps: int
    power: float = 1.0

    def __post_init__(self) -> None:
        _settle(self, initial=_FINITE, end=_FINITE, steps=_COUNT, power=_POSITIVE)

    def _at(self, t: Any, xp: Any) -> Any:
        remaining = 1.0 - _progress(t, 0, self.steps, xp)
        return _mix(self.end, self.initial, remaining**self.power)


@dataclass(frozen=True)
class Piecewise(Schedule):
    """Constant between boundaries: `values[i]` where `boundaries[i - 1] <= t < boundaries[i]`.

    Args:
        boundaries: the steps at which the next value begins; strictly increasing integers >= 1.
        values: finite numbers, one more than boundaries.

    Raises:
        HyperparameterError: an argument is out of its range or the lengths do not fit.

    Source: PyTorch `MultiStepLR` and optax `piecewise_constant_schedule`, which also switch at the
    boundary itself. Keras `PiecewiseConstantDecay` switches one update later.
    """

    boundaries: Sequence[int]
    values: Sequence[float]

    def __post_init__(self) -> None:
        _settle(self, boundaries=_rising, values=_each(_FINITE))
        _check_lengths(self, "values", self.values, self.boundaries)

    def _at(self, t: Any, xp: Any) -> Any:
        value = self.values[0] + 0.0 * t
        for boundary, later in zip(self.boundaries, self.values[1:], strict=True):
            value = xp.where(t < float(boundary), value, later)
        return value


@dataclass(frozen=True)
class InverseTime(Schedule):
    """Divided by a divisor that grows by `decay_rate` every `decay_steps` updates.

    `initial / (1 + decay_rate * t / decay_steps)`; with `staircase`, `t / decay_steps` is rounded
    down.

    Args:
        initial: the value at the first step; finite.
        decay_rate: >= 0.
        decay_steps: the updates in which the divisor grows once; an integer >= 1.
        staircase: let the divisor grow at every `decay_steps`-th update instead of gradually.

    Raises:
        HyperparameterError: an argument is out of its range.

    Source: Keras `InverseTimeDecay`; with `decay_steps=1` also the `lr_decay` of Torch's Adagrad.
    """

    initial: float
    decay_rate: float
    decay_steps: int = 1
    staircase: bool = False

    def __post_init__(self) -> None:
        _settle(
            self, initial=_FINITE, decay_rate=_NOT_NEGATIVE, decay_steps=_COUNT, staircase=_flag
        )

    def _at(self, t: Any, xp: Any) -> Any:
        periods = _periods(t, self.decay_steps, self.staircase, xp)
        return self.initial / (1.0 + self.decay_rate * periods)


@dataclass(frozen=True)
class OneCycle(Schedule):
    """One rise to `peak` and one longer fall far below the start, which then holds.

    With `start = start_factor * peak`, `end = end_factor * start` and
    `w = floor(warmup_fraction * steps)`: from `start` to `peak` over `w` updates, then from `peak`
    to `end` over `steps - w`, each along the curve `shape`: `f` (linear) or `(1 - cos(pi * f)) / 2`
    (cosine) of the fraction `f` of that part.

    Args:
        peak: the largest value, reached at step `w`; finite.
        steps: the length of the cycle in updates; an integer >= 1.
        warmup_fraction: the part of the cycle that rises; in [0, 1).
        start_factor: the first value as a fraction of the peak; > 0. PyTorch's `1 / div_factor`.
        end_factor: the last value as a fraction of the first; >= 0. PyTorch's
            `1 / final_div_factor`.
        shape: `"cosine"` or `"linear"`.

    Raises:
        HyperparameterError: an argument is out of its range.

    Source: arXiv:1708.07120; the numbers are those of optax `cosine_onecycle_schedule`. PyTorch's
    `OneCycleLR` has the same three values and places the peak one update earlier (at
    `pct_start * total_steps - 1`, not rounded) and the end at `total_steps - 1`.
    """

    peak: float
    steps: int
    warmup_fraction: float = 0.3
    start_factor: float = 1.0 / 25.0
    end_factor: float = 1e-4
    shape: Literal["cosine", "linear"] = "cosine"

    def __post_init__(self) -> None:
        _settle(
            self,
            peak=_FINITE,
            steps=_COUNT,
            warmup_fraction=_FRACTION,
            start_factor=_POSITIVE,
            end_factor=_NOT_NEGATIVE,
            shape=_one_of("cosine", "linear"),
        )

    def _at(self, t: Any, xp: Any) -> Any:
        curve = _CURVES[self.shape]
        start = self.start_factor * self.peak
        warmup = int(self.warmup_fraction * self.steps)
        rise = curve(_progress(t, 0, warmup, xp), xp)
        fall = curve(_progress(t, warmup, self.steps - warmup, xp), xp)
        return _mix(_mix(start, self.peak, rise), self.end_factor * start, fall)


@dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    """A linear rise, a long plateau and a decay at the end, which then holds.

    With `f` the fraction of the decay that is done, the last part is
    `peak + (end - peak) * shape(f)`, where `shape(f)` is `f` (linear), `(1 - cos(pi * f)) / 2`
    (cosine) or `sqrt(f)` (sqrt).

    Args:
        peak: the value of the plateau; finite.
        warmup_steps: the updates of the rise; an integer >= 0.
        stable_steps: the updates of the plateau; an integer >= 0.
        decay_steps: the updates of the decay; an integer >= 1.
        start: the value at the first step; finite. Not used without warm-up.
        end: the value after the decay; finite.
        shape: `"linear"`, `"cosine"` or `"sqrt"`.

    Raises:
        HyperparameterError: an argument is out of its range.

    Source: MiniCPM, arXiv:2404.06395, section 4, whose decay is exponential (build it with
    `Chained`); the linear, cosine and 1-sqrt shapes are compared in arXiv:2405.18392.
    """

    peak: float
    warmup_steps: int
    stable_steps: int
    decay_steps: int
    start: float = 0.0
    end: float = 0.0
    shape: Literal["linear", "cosine", "sqrt"] = "linear"

    def __post_init__(self) -> None:
        _settle(
            self,
            peak=_FINITE,
            warmup_steps=_COUNT_OR_ZERO,
            stable_steps=_COUNT_OR_ZERO,
            decay_steps=_COUNT,
            start=_FINITE,
            end=_FINITE,
            shape=_one_of("linear", "cosine", "sqrt"),
        )

    def _at(self, t: Any, xp: Any) -> Any:
        rise = _progress(t, 0, self.warmup_steps, xp)
        fall = _progress(t, self.warmup_steps + self.stable_steps, self.decay_steps, xp)
        risen = _mix(self.start, self.peak, rise)
        return _mix(risen, self.end, _CURVES[self.shape](fall, xp))


@dataclass(frozen=True)
class Chained(Schedule):
    """Schedules one after the other, each counting from its own beginning.

    `schedules[0](t)` before the first boundary, then `schedules[i](t - boundaries[i - 1])` where
    `boundaries[i - 1] <= t < boundaries[i]`.

        Chained([LinearWarmup(3e-4, 500), Cosine(3e-4, 9_500)], [500])

    Args:
        schedules: schedules of this module, or finite numbers for constants. Other callables are
            refused: they have no configuration and need not accept arrays.
        boundaries: the steps at which the next schedule begins, one fewer than schedules; strictly
            increasing integers >= 1.

    Raises:
        HyperparameterError: an argument is out of its range or the lengths do not fit.

    Source: optax `join_schedules`; PyTorch `SequentialLR`.
    """

    schedules: Sequence[Schedule | float]
    boundaries: Sequence[int]

    def __post_init__(self) -> None:
        _settle(self, schedules=_each(_link), boundaries=_rising)
        _check_lengths(self, "schedules", self.schedules, self.boundaries)

    def _at(self, t: Any, xp: Any) -> Any:
        first, *rest = cast(Sequence[Schedule], self.schedules)
        value = first._at(_within(t, 0, self.boundaries[:1], xp), xp)
        for i, schedule in enumerate(rest):
            begin, end = self.boundaries[i], self.boundaries[i + 1 : i + 2]
            later = schedule._at(_within(t, begin, end, xp), xp)
            value = xp.where(t < float(begin), value, later)
        return value


_KINDS: dict[str, type[Schedule]] = {
    kind.__name__: kind
    for kind in (
        Constant,
        LinearWarmup,
        Cosine,
        Exponential,
        Polynomial,
        Piecewise,
        InverseTime,
        OneCycle,
        WarmupStableDecay,
        Chained,
    )
}


def from_config(config: Mapping[str, Any]) -> Schedule:
    """Return the schedule that `get_config` described; `config` itself is not changed.

    Raises:
        UnknownNameError: the schedule or one of its arguments is not known.
        HyperparameterError: an argument is missing or out of its range.
    """
    if _KIND not in config:
        raise HyperparameterError(
            f"a schedule's configuration needs the key {_KIND!r}, got {sorted(config)}"
        )
    name = str(config[_KIND])
    if name not in _KINDS:
        raise UnknownNameError(
            f"no schedule is called {name!r}{nearest(name, _KINDS) or f'; known: {list(_KINDS)}'}"
        )
    arguments = {key: _rebuilt(value) for key, value in config.items() if key != _KIND}
    known = {field.name: field for field in fields(_KINDS[name])}
    for key in arguments:
        if key not in known:
            hint = nearest(key, known) or f"; it has {list(known)}"
            raise UnknownNameError(f"{name} has no argument {key!r}{hint}")
    for key, field in known.items():
        if field.default is MISSING and key not in arguments:
            raise HyperparameterError(f"{name}: the configuration lacks the argument {key!r}")
    return _KINDS[name](**arguments)


def as_schedule(x: float | Callable[[int], float]) -> Schedule | Callable[[int], float]:
    """Return `Constant(x)` for a number, and any callable of the step count as it is.

    Raises:
        HyperparameterError: `x` is neither, or is a number that is not finite.
    """
    if isinstance(x, numbers.Real):
        return Constant(cast(float, x))
    if not callable(x) or isinstance(x, type):
        raise HyperparameterError(
            f"a schedule must be a finite number or a callable of the step count, got {_shown(x)}"
        )
    return x


# ---- curves --------------------------------------------------------------------------------------


class _Scalars:
    """The namespace of Python floats, with which a step reads a schedule in a microsecond.

    NumPy's functions are made for arrays and take ten times as long on a single number.
    """

    cos = staticmethod(math.cos)
    sqrt = staticmethod(math.sqrt)
    floor = staticmethod(math.floor)

    @staticmethod
    def where(condition: bool, chosen: float, other: float) -> float:
        return chosen if condition else other


def _mix(a: Any, b: Any, fraction: Any) -> Any:
    return (1.0 - fraction) * a + fraction * b  # exactly a at 0 and exactly b at 1


def _progress(t: Any, begin: int, steps: int, xp: Any) -> Any:
    """Return the part of `steps` done since `begin`: exactly 0 before and exactly 1 after."""
    fraction = (t - float(begin)) / float(max(steps, 1))
    return xp.where(t < float(begin), 0.0, xp.where(t < float(begin + steps), fraction, 1.0))


def _periods(t: Any, steps: int, staircase: bool, xp: Any) -> Any:
    if not staircase:
        return t / float(steps)
    # Compilers divide by a constant through its reciprocal, which can fall just short of an
    # integer. Half an update more leaves the integers where they are and clear of rounding.
    return xp.floor((t + 0.5) / float(steps))


def _within(t: Any, begin: int, end: Sequence[int], xp: Any) -> Any:
    """Return the count since `begin`, and 0 outside, where growth might overflow unseen."""
    local = xp.where(t < float(begin), 0.0, t - float(begin))
    return xp.where(t < float(end[0]), local, 0.0) if end else local


def _linear(fraction: Any, xp: Any) -> Any:
    return fraction


def _cosine(fraction: Any, xp: Any) -> Any:
    return (1.0 - xp.cos(math.pi * fraction)) / 2.0


def _sqrt(fraction: Any, xp: Any) -> Any:
    return xp.sqrt(fraction)


_CURVES: dict[str, Callable[[Any, Any], Any]] = {
    "linear": _linear,
    "cosine": _cosine,
    "sqrt": _sqrt,
}


# ---- arguments -----------------------------------------------------------------------------------

# A reader takes the argument's full name and what was passed, and returns the plain Python value
# that is kept: configurations and equality then do not depend on NumPy scalars, lists or tuples.
_Reader = Callable[[str, object], object]

_EXACT = 2**53  # counts up to here are exact in float64


def _settle(schedule: Schedule, **readers: _Reader) -> None:
    for name, read in readers.items():
        value = read(f"{type(schedule).__name__}: {name}", getattr(schedule, name))
        object.__setattr__(schedule, name, value)


def _as_finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _number(allowed: str, accepts: Callable[[float], bool]) -> _Reader:
    def read(name: str, value: object) -> float:
        number = _as_finite(value)
        if number is not None and accepts(number):
            return number
        raise HyperparameterError(f"{name} must be {allowed}, got {_shown(value)}")

    return read


def _count_from(least: int) -> _Reader:
    def read(name: str, value: object) -> int:
        if not isinstance(value, bool) and isinstance(value, numbers.Integral):
            count = int(value)
            if least <= count <= _EXACT:
                return count
        raise HyperparameterError(
            f"{name} must be an integer >= {least} (and <= 2**53), got {_shown(value)}"
        )

    return read


def _each(read: _Reader) -> _Reader:
    def read_all(name: str, value: object) -> tuple[object, ...]:
        try:
            items = tuple(cast(Sequence[object], value))
        except TypeError:
            raise HyperparameterError(f"{name} must be a sequence, got {_shown(value)}") from None
        return tuple(read(f"{name}[{i}]", item) for i, item in enumerate(items))

    return read_all


def _one_of(*choices: str) -> _Reader:
    def read(name: str, value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            hint = nearest(value, choices) if isinstance(value, str) else ""
            said = " or ".join(map(repr, choices))
            raise HyperparameterError(f"{name} must be {said}, got {_shown(value)}{hint}")
        return value

    return read


def _flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise HyperparameterError(f"{name} must be True or False, got {_shown(value)}")


def _rising(name: str, value: object) -> object:
    boundaries = cast(tuple[int, ...], _each(_COUNT)(name, value))
    if any(later <= earlier for earlier, later in pairwise(boundaries)):
        raise HyperparameterError(f"{name} must be strictly increasing, got {list(boundaries)}")
    return boundaries


def _link(name: str, value: object) -> Schedule:
    if isinstance(value, Schedule):
        return value
    return Constant(cast(float, _LINK_NUMBER(name, value)))


_FINITE = _number("a finite number", lambda number: True)
_POSITIVE = _number("a finite number > 0", lambda number: number > 0.0)
_NOT_NEGATIVE = _number("a finite number >= 0", lambda number: number >= 0.0)
_FRACTION = _number("a number in [0, 1)", lambda number: 0.0 <= number < 1.0)
_LINK_NUMBER = _number("a schedule of isostep.schedules or a finite number", lambda number: True)
_COUNT = _count_from(1)
_COUNT_OR_ZERO = _count_from(0)


def _check_lengths(
    schedule: Schedule, name: str, items: Sequence[object], boundaries: Sequence[int]
) -> None:
    if len(items) != len(boundaries) + 1:
        raise HyperparameterError(
            f"{type(schedule).__name__}: {name} must have one entry more than boundaries, "
            f"got {len(items)} {name} and {len(boundaries)} boundaries"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Schedule):
        return value.get_config()
    if isinstance(value, tuple):
        return [_plain(item) for item in cast(tuple[Any, ...], value)]
    return value


def _rebuilt(value: Any) -> Any:
    if isinstance(value, Mapping):
        return from_config(cast(Mapping[str, Any], value))
    if isinstance(value, (list, tuple)):
        return [_rebuilt(item) for item in cast(Sequence[Any], value)]
    return value


def _shown(value: object) -> str:
    return f"{value!r} ({type(value).__name__})"
