"""The optimizer over NumPy arrays."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Literal, NoReturn, Self, cast

import numpy as np

from isostep import commit, dialects, rules
from isostep.engines.leaf import AnyArray
from isostep.errors import (
    GradientError,
    HyperparameterError,
    ParameterError,
    StateError,
    UnknownNameError,
    nearest,
)
from isostep.groups import Group, as_groups, assign
from isostep.lock import Lock, locked
from isostep.names import flatten
from isostep.numpy.containers import Containers
from isostep.numpy.gradients import Gradients
from isostep.numpy.memory import Memory
from isostep.numpy.params import checked_params
from isostep.plan import Plan
from isostep.rates import LR_RATIO, group_values
from isostep.recipe import EMA, NONFINITE, Clip, as_ema
from isostep.report import Report
from isostep.rules.base import Rule, is_on
from isostep.stepper import DTYPES, Engine, HyperGroup, Options, Stepper

STATE_FORMAT = 1
_LATE = ": it was put into the params after the optimizer was made, so make a new one"
DEFAULT_GROUP = "(default)"


class Optimizer:
    """Steps NumPy arrays in place by one rule.

    Args:
        rule: a rule, its name (`"AdamW"`, or one of your own that was registered), or the name of
            the framework's class (`"Momentum"` of Paddle).
        params: arrays in (nested) dicts and lists; their names are the dotted paths. float64,
            float32, float16 or bfloat16 (ml_dtypes), of any shape and strides, in any mixture.
            A step updates the arrays that stand in them when it is called: one that was replaced
            (`params["w"] = other`, of the same shape and dtype) goes on with the state that is kept
            under its name. New entries are not stepped.
        dialect: whose defaults, formulas and argument names: `"torch"`, `"keras"`, `"tf_keras"`,
            `"paddle"` or `"optax"`.
        groups: ordered `Group(pattern, **hyperparameters)` or dicts with `match`; the first
            pattern that matches a name gives it these hyperparameters. `lr_ratio` is a factor on
            the optimizer's learning rate; a number as `lr` under a schedule is the rate at its
            start.
        clip: `Clip(value=...)`, `Clip(norm=...)` per tensor, or `Clip(global_norm=...)`.
        ema: an `EMA`, or its momentum; see `averaged_params`.
        maximize: ascend instead of descend.
        decay: `"coupled"` adds weight decay to the gradient, `"decoupled"` shrinks the parameter;
            None is the dialect's way. (A number is `optax.rmsprop`'s hyperparameter of this name.)
        nonfinite: what an infinite or NaN gradient does: `"propagate"`, `"skip"` or `"raise"`.
        master_weights: keep a float32 copy of each float16 and bfloat16 parameter, and step that.
        state_dtype: dtype of the element-wise slots, one for all or a dict by slot name.
        report: `step` returns norms and non-finite counts, measured in the same pass.
        engine: `"native"` (generated kernels) or `"array"` (NumPy, the check of the other).
        **hyperparameters: those of the rule, under its own names or the dialect's; each a number
            or a callable of the step count (0 at the first step).

    Raises:
        UnknownNameError: an unknown rule, dialect, hyperparameter, or a group that matches nothing.
        HyperparameterError: a value out of its range.
        ParameterError: an array that cannot be stepped: read-only, of a wrong dtype, given twice,
            or overlapping another.
    """

    def __init__(
        self,
        rule: str | Rule,
        params: Any,
        *,
        dialect: str = "torch",
        groups: Sequence[Group | Mapping[str, Any]] = (),
        clip: Clip | None = None,
        ema: EMA | float | None = None,
        maximize: bool = False,
        decay: Any = None,
        nonfinite: Literal["propagate", "skip", "raise"] = "propagate",
        master_weights: bool = False,
        state_dtype: str | dict[str, str] | None = None,
        report: bool = False,
        engine: Engine = "native",
        **hyperparameters: Any,
    ) -> None:
        self._lock, self._averaging = Lock(), _Averaging()
        self._dialect = dialects.get(dialect)
        self._spelling = self._dialect.spelling(rule)
        self.rule = rule if isinstance(rule, Rule) else rules.get(self._spelling.rule)
        self._hyperparameters = {*self._spelling.arguments, *self.rule.defaults} - {"lr"}
        if decay is not None and not isinstance(decay, str) and "decay" in self._spelling.arguments:
            hyperparameters["decay"], decay = decay, None  # optax.rmsprop has one of this name
        self._containers = Containers(params)
        arrays = checked_params(self._containers.entries())
        _one_of("decay", decay, ("coupled", "decoupled", None))
        _one_of("nonfinite", nonfinite, NONFINITE)
        _one_of("engine", engine, ("native", "array"))
        for flag, value in (
            ("maximize", maximize),
            ("master_weights", master_weights),
            ("report", report),
        ):
            _one_of(flag, value, (True, False))
        if clip is not None and not isinstance(clip, Clip):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise HyperparameterError(
                f"clip={clip!r} is not a Clip: write Clip(global_norm=...), Clip(norm=...) or "
                f"Clip(value=...)"
            )
        ema = as_ema(ema, self._dialect.averaging.start)
        options = Options(
            clip=clip,
            ema=ema,
            maximize=maximize,
            decay=cast(Any, decay),
            nonfinite=nonfinite,
            unscale=True,
            master_weights=master_weights,
            state_dtype=self._checked_state_dtype(state_dtype),
            report=report,
        )
        named = as_groups(groups)
        assigned = assign(list(arrays), named)
        default = self._spelling.resolve(self.rule, hyperparameters)
        hyper = [
            HyperGroup(
                ", ".join(g.patterns),
                *group_values(self._spelling, self.rule, default, g.hyperparameters),
            )
            for g in named
        ]
        hyper.append(HyperGroup(DEFAULT_GROUP, default))
        membership = [len(named) if k < 0 else k for k in assigned]
        self._stepper = Stepper(self.rule, self._dialect, self._spelling, hyper, options, engine)
        for (name, array), group in zip(arrays.items(), membership, strict=True):
            self._stepper.add(name, array, group)
        self._look_up()

    def _look_up(self) -> None:
        """Make what is found from the stepper's parameters."""
        self._names = [leaf.name for leaf in self._stepper.leaves]
        self._places = {name: place for place, name in enumerate(self._names)}
        self._listed = self._names == list(map(str, range(len(self._names))))
        self._memory = Memory(self._stepper, self._containers)
        self._gradients = Gradients(self._stepper.leaves, self._memory)

    # -- copies ----------------------------------------------------------------------------------

    @locked
    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """An optimizer of copied parameters, which `copy.deepcopy((params, optimizer))` returns."""
        old = self._stepper
        everyone = range(len(self._names))
        self._memory.follow()
        self._memory.check_params(everyone, written=False)
        self._memory.check_slots(everyone)
        twin = object.__new__(type(self))
        twin.__dict__ |= self.__dict__
        twin._lock, twin._averaging = Lock(), _Averaging()
        groups = [replace(group, values=dict(group.values)) for group in old.groups]
        twin._stepper = new = Stepper(
            old.rule, old.dialect, old.spelling, groups, old.options, cast(Engine, old.engine)
        )
        twin._containers = Containers(self._containers.copied(memo))
        arrays = twin._containers.entries()
        for leaf, steps in zip(old.leaves, old.steps, strict=True):
            new.add(leaf.name, arrays[leaf.name], leaf.group, int(steps))
        new.iteration, new.skipped = old.iteration, old.skipped
        twin._look_up()
        for name in self._names:
            kept = self.slots(name)
            for slot, array in twin.slots(name).items():
                array[...] = kept[slot]
        return twin

    def __getstate__(self) -> NoReturn:
        raise TypeError(
            "an optimizer steps arrays where they lie in memory, and can be neither pickled nor "
            "copied without them: save state_dict() and load it into a new optimizer, or use "
            "copy.deepcopy((params, optimizer))"
        )

    # -- stepping --------------------------------------------------------------------------------

    @locked
    def step(self, grads: Any, *, loss_scale: float = 1.0) -> Report | None:
        """Update all parameters in place.

        Args:
            grads: gradients, nested or named as the parameters are; of the parameter's shape and
                any of the four dtypes; never written to. None leaves that parameter untouched.
            loss_scale: what the gradients are divided by, a positive number.

        Returns:
            The report if the optimizer was made with `report=True`, else None.

        Raises:
            GradientError: a gradient is missing, of no known name, of the wrong shape or dtype,
                or not finite under `nonfinite="raise"`. Nothing has been changed.
            ParameterError, StateError: a parameter with a gradient, or one of its slots, was
                resized, recast, reshaped, made read-only or made to share memory since the
                optimizer was made, or its entry in the params was removed or replaced by something
                of another shape or dtype. Nothing has been changed; other strides, a place
                elsewhere and other arrays of the same form are followed.
        """
        try:
            usable = 0 < loss_scale < math.inf
        except TypeError:
            usable = False
        if not usable:
            raise HyperparameterError(
                f"loss_scale={loss_scale!r} is not allowed: it must be a number in (0, inf)"
            )
        if self._averaging.depth:
            raise ParameterError(
                "step() inside averaged_params(): parameters hold their averages there, and what "
                "a step made of them would be lost; nothing was changed"
            )
        self._memory.follow()
        dtypes = self._gradients.collect(self._in_order(grads))
        try:
            self._memory.check_step(dtypes)
            report = self._stepper.step(dtypes, self._gradients.bind, loss_scale)
        finally:
            self._gradients.release()
        return report

    def _in_order(self, grads: Any) -> list[Any]:
        """The gradients in the order of the parameters."""
        if type(grads) is dict and list(cast(dict[Any, Any], grads)) == self._names:
            return list(cast(dict[str, Any], grads).values())
        if self._listed and type(grads) is list and len(cast(list[Any], grads)) == len(self._names):
            return list(cast(list[Any], grads))
        flat = isinstance(grads, dict) and self._places.keys() == cast(dict[Any, Any], grads).keys()
        named: dict[str, Any] = cast(dict[str, Any], grads) if flat else flatten(grads, "grads")
        if named.keys() != self._places.keys():
            missing = [n for n in self._names if n not in named]
            extra = [n for n in named if n not in self._places]
            if extra:
                late = extra[0] in self._containers.entries()
                hint = _LATE if late else nearest(extra[0], missing or self._names)
                raise GradientError(
                    f"no parameter is named {extra[0]!r}{hint}"
                    f" ({len(extra)} gradient(s) without a parameter; nothing was changed)"
                )
            raise GradientError(
                f"no gradient for {', '.join(map(repr, missing[:5]))}"
                f"{' and others' if len(missing) > 5 else ''}: give None for a parameter that "
                f"should stay as it is (nothing was changed)"
            )
        return [named[name] for name in self._names]

    # -- averages --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def averaged_params(self) -> Generator[None]:
        """The parameters hold their moving averages inside this context, and are put back after it,
        also when it is left by an exception. They cannot be stepped there.

        Raises:
            HyperparameterError: the optimizer was made without `ema`.
            ParameterError, StateError: an array has become another since the optimizer was made,
                as in `step`; a parameter did so inside the context, and could not be put back.
        """
        if self._stepper.options.ema is None:
            raise HyperparameterError("there are no averages: make the optimizer with ema=...")
        self._show_averages()
        try:
            yield
        finally:
            self._put_back()

    @locked
    def _show_averages(self) -> None:
        shown, leaves = self._averaging, self._stepper.leaves
        if not shown.depth:
            self._memory.follow()
            self._memory.check_params(range(len(leaves)))
            self._memory.check_slots(range(len(leaves)))
            averages = [leaf.view(leaf.arrays["average"]).astype(leaf.dtype) for leaf in leaves]
            shown.kept = [np.array(leaf.array) for leaf in leaves]
            try:
                commit.run(lambda _: _write([leaf.array for leaf in leaves], averages))
            except BaseException:
                self._put_back()
                raise
        shown.depth += 1

    @locked
    def _put_back(self) -> None:
        shown, leaves = self._averaging, self._stepper.leaves
        if shown.depth > 1:
            shown.depth -= 1
            return
        self._memory.follow()
        bad = self._memory.unwritable
        pairs = [
            (leaf.array, kept)
            for k, (leaf, kept) in enumerate(zip(leaves, shown.kept, strict=True))
            if k not in bad
        ]

        def write(_: commit.Progress) -> None:
            _write(*zip(*pairs, strict=True))
            shown.depth, shown.kept = 0, []

        commit.run(write)
        self._memory.check_params(bad)

    # -- hyperparameters -------------------------------------------------------------------------

    @property
    def lr(self) -> Any:
        """The learning rate of the default group: a number or a schedule. Can be set."""
        return self._stepper.groups[-1].values["lr"]

    @lr.setter
    def lr(self, value: Any) -> None:
        self.set(lr=value)

    def __setattr__(self, name: str, value: Any) -> None:
        known: set[str] = self.__dict__.get("_hyperparameters", set())
        if name in known:
            raise AttributeError(
                f"{name} is a hyperparameter, not an attribute: write optimizer.set({name}=...)"
            )
        super().__setattr__(name, value)

    @locked
    def set(self, group: str | None = None, /, **hyperparameters: Any) -> None:
        """Change hyperparameters from the next step on.

        Args:
            group: a group's pattern; None changes all groups.
            **hyperparameters: numbers or callables, and `lr_ratio`; what selects code (flags,
                choices, and whether momentum or decay is used at all) is fixed when the optimizer
                is made.

        Raises:
            UnknownNameError: an unknown group or hyperparameter.
            HyperparameterError: a value out of range, or one that selects code.
        """
        known = [g.name for g in self._stepper.groups]
        if group is not None and group not in known:
            raise UnknownNameError(f"there is no group {group!r}{nearest(group, known)}")
        keeps_ratio = "lr_ratio" not in hyperparameters
        ratio = LR_RATIO.check(hyperparameters.pop("lr_ratio", 1.0))
        changed: list[tuple[HyperGroup, dict[str, Any]]] = []
        for g in self._stepper.groups:
            if group is None or g.name == group:
                values = self._spelling.changed(self.rule, g.values, hyperparameters)
                self._refuse_new_code(g, values)
                changed.append((g, values))
        for g, values in changed:
            g.values.update(values)
            g.lr_ratio = g.lr_ratio if keeps_ratio else ratio

    def _refuse_new_code(self, group: HyperGroup, values: dict[str, Any]) -> None:
        before = group.values
        for name, value in values.items():
            if self._code({**before, name: value}) != self._code(before):
                raise HyperparameterError(
                    f"{name} selects what code runs and which slots exist: it cannot go from "
                    f"{before[name]!r} to {value!r} in a live optimizer; make a new one"
                )

    def _code(self, values: dict[str, Any]) -> tuple[Any, ...]:
        """What of some hyperparameters decides which code runs and which slots exist."""
        h = SimpleNamespace(**values)
        static = [values[p.name] for p in self.rule.hyperparameters if p.static]
        axes = [self.rule.factored_axes(leaf.shape, h) for leaf in self._stepper.leaves]
        return static, self.rule.switches(h), is_on(values.get("weight_decay")), axes

    def _checked_state_dtype(self, asked: Any) -> Any:
        named = cast(dict[str, str], asked) if isinstance(asked, dict) else {"": asked}
        slots = [s.name for s in self.rule.slots]
        for slot, dtype in named.items():
            if slot and slot not in slots:
                raise UnknownNameError(
                    f"state_dtype: {self.rule.name} has no slot {slot!r}{nearest(slot, slots)}"
                )
            if dtype is not None and str(dtype) not in DTYPES:
                raise HyperparameterError(
                    f"state_dtype={dtype!r} is not supported: use one of {', '.join(DTYPES)}"
                )
        return cast(Any, asked)

    # -- state -----------------------------------------------------------------------------------

    @property
    def iteration(self) -> int:
        """How many steps were completed; skipped ones do not count."""
        return self._stepper.iteration

    @property
    def skipped(self) -> int:
        """How many steps were skipped for a non-finite gradient."""
        return self._stepper.skipped

    @property
    def state_bytes(self) -> int:
        """Bytes of all slots, averages and master copies."""
        return self._stepper.state_bytes

    @locked
    def slots(self, name: str) -> dict[str, AnyArray]:
        """The arrays kept for parameter `name`: live views, in the parameter's axis order.

        Raises:
            UnknownNameError: no parameter has this name.
            StateError: one of the arrays was resized, recast, reshaped or made read-only in place.
        """
        place = self._places.get(name)
        if place is None:
            raise UnknownNameError(f"no parameter is named {name!r}{nearest(name, self._names)}")
        self._memory.follow()
        self._memory.check_slots([place])
        leaf = self._stepper.leaves[place]
        kept = self._stepper.kept(leaf)
        return {slot: leaf.view(array, self._stepper.per(slot)) for slot, array in kept.items()}

    @locked
    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, by parameter name; arrays are copies.

        Schedules are not part of it: they are code. Parameters are not part of it either.
        """
        return {
            "format": STATE_FORMAT,
            "rule": self.rule.name,
            "dialect": self._dialect.name,
            "iteration": self.iteration,
            "skipped": self.skipped,
            "groups": {
                g.name: {k: v for k, v in g.values.items() if not callable(v)}
                for g in self._stepper.groups
            },
            "parameters": {
                name: {
                    "step": int(count),
                    "slots": {slot: np.array(a) for slot, a in self.slots(name).items()},
                }
                for name, count in zip(self._names, self._stepper.steps, strict=True)
            },
        }

    @locked
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`. Hyperparameters stay as this optimizer was made with.

        The dtypes of the slots stay; values are converted to them.

        Raises:
            StateError: it is of another rule or format, or its parameters, slots or shapes are not
                this optimizer's. Nothing has been changed.
        """
        try:
            entries = self._checked_state(state)
            values = [
                (array, np.asarray(entries[name]["slots"][slot]).astype(array.dtype))
                for name in self._names
                for slot, array in self.slots(name).items()
            ]
            steps = [int(entries[name]["step"]) for name in self._names]
            iteration, skipped = int(state["iteration"]), int(state.get("skipped", 0))
            if min(iteration, skipped, *steps) < 0:
                raise ValueError("a negative step count")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, StateError):
                raise
            raise StateError(f"the state is damaged: {error!r}; nothing was changed") from error

        def write(_: commit.Progress) -> None:
            _write(*zip(*values, strict=True))
            self._stepper.steps[:] = steps
            self._stepper.iteration, self._stepper.skipped = iteration, skipped

        commit.run(write)

    def _checked_state(self, state: Any) -> dict[str, Any]:
        if not isinstance(state, Mapping) or "parameters" not in state:
            raise StateError("this is no state of an optimizer: it has no 'parameters'")
        state = cast(Mapping[str, Any], state)
        if state.get("format") != STATE_FORMAT:
            raise StateError(f"format {state.get('format')!r} is unknown: expected {STATE_FORMAT}")
        if state.get("rule") != self.rule.name:
            raise StateError(
                f"this is the state of {state.get('rule')!r}, and the optimizer is "
                f"{self.rule.name!r}: make one of that rule to load it"
            )
        entries: dict[str, Any] = dict(state["parameters"])
        missing = [n for n in self._names if n not in entries]
        extra = [n for n in entries if n not in self._places]
        if missing or extra:
            raise StateError(
                f"the parameters differ: missing {missing[:3]}, unknown {extra[:3]}"
                f"{nearest(extra[0], missing) if extra and missing else ''}"
            )
        for name in self._names:
            self._check_entry(name, entries[name])
        self._check_meaning(state)
        return entries

    def _check_meaning(self, state: Mapping[str, Any]) -> None:
        """Refuse slots whose numbers mean something else here than where they were saved."""
        for slot in self.rule.slots:
            kept = any(slot.name in self._stepper.kept(leaf) for leaf in self._stepper.leaves)
            for name in slot.meant_by if kept else ():
                here = {g.values[name] for g in self._stepper.groups}
                there = {values[name] for values in state["groups"].values()}
                if here != there:
                    raise StateError(
                        f"{slot.name} was saved under {name}={sorted(there)} (dialect "
                        f"{state.get('dialect')!r}), and would be read under {name}={sorted(here)} "
                        f"(dialect {self._dialect.name!r}): load it in the dialect it was saved in"
                    )

    def _check_entry(self, name: str, entry: Mapping[str, Any]) -> None:
        live, saved = self.slots(name), entry["slots"]
        if live.keys() != saved.keys():
            raise StateError(
                f"{name!r} has slots {sorted(live)}, and its saved state {sorted(saved)}: "
                f"make the optimizer with the options it was saved with"
            )
        for slot, array in live.items():
            if np.shape(saved[slot]) != array.shape:
                raise StateError(
                    f"{name!r}: {slot} has shape {array.shape}, and the saved one "
                    f"{np.shape(saved[slot])}"
                )

    # -- looking in ------------------------------------------------------------------------------

    @locked
    def plan(self) -> Plan:
        """What a step will do: groups, slots, bytes and kernels of each parameter.

        Gradients are taken to have the dtype of their parameter. Nothing is run or compiled.
        """
        return self._stepper.plan(self._own_dtypes())

    @locked
    def source(self) -> str:
        """The generated source of the kernels that a step runs."""
        runners = self._stepper.prepare(self._own_dtypes()).runners
        return "\n\n".join(r.source for r in runners)

    @property
    def ran(self) -> list[str]:
        """What ran in the last step, one entry for each kernel: engine, layout and dtype."""
        return self._stepper.ran

    def _own_dtypes(self) -> tuple[str | None, ...]:
        return tuple(leaf.dtype.name for leaf in self._stepper.leaves)

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v!r}" for k, v in self._stepper.groups[-1].values.items())
        return f"{self.rule.name}({len(self._names)} parameters, {self._dialect.name}: {values})"


@dataclass
class _Averaging:
    """What `averaged_params` has put away.

    Args:
        depth: how many such contexts have been entered and not left.
        kept: the values of the parameters outside of them.
    """

    depth: int = 0
    kept: list[AnyArray] = field(default_factory=list[AnyArray])


def _write(arrays: Sequence[AnyArray] = (), values: Sequence[AnyArray] = ()) -> None:
    for array, value in zip(arrays, values, strict=True):
        np.asarray(array)[...] = value


def _one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        hint = nearest(str(value), [a for a in allowed if isinstance(a, str)])
        raise HyperparameterError(
            f"{name}={value!r} is not allowed{hint} (one of {', '.join(map(repr, allowed))})"
        )
