"""What Keras 3 and tf_keras have in common: an optimizer whose `apply` is one fused step.

`FusedOptimizer` goes before a class of either framework. Constructor, variables, learning rate and
saving stay the framework's own; this adds isostep's options and reads the framework's.
"""

from __future__ import annotations

import contextlib
import inspect
import numbers
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from isostep import dialects, extension, rules
from isostep.engines.leaf import Leaf
from isostep.engines.threads import HOST, Crew
from isostep.errors import HyperparameterError, StateError
from isostep.functional import stand_in
from isostep.groups import Group, as_groups, assign
from isostep.plan import Plan
from isostep.rates import group_values
from isostep.recipe import EMA, Clip
from isostep.report import SUMS, Report
from isostep.rules.base import SIGNED_LR
from isostep.stepper import Engine, HyperGroup, Options, Stepper, as_dtype

NONFINITE = ("propagate", "skip")
EXTRAS: dict[str, Any] = {"groups": (), "nonfinite": "propagate", "report": False}
"""The keyword-only arguments that isostep adds, with their defaults."""

PLAIN = (bool, int, float, str, np.generic, np.ndarray, type(None))


def is_plain(value: Any) -> bool:
    """Whether a hyperparameter is a value, and not something that gives one at each step."""
    return isinstance(value, PLAIN)


def live(value: Any) -> Any:
    """A hyperparameter as a rule takes it: variables and tensors are read at each step."""
    return value if is_plain(value) or callable(value) else lambda step: value


@dataclass(frozen=True, eq=False)
class _Same:
    """Equal to what holds the same object: variables compare by element."""

    held: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.held is other.held

    __hash__ = None  # pyright: ignore[reportAssignmentType]


SETTINGS = (
    "clipnorm",
    "global_clipnorm",
    "clipvalue",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
)
"""Attributes of both Keras' beyond those of the rule that decide about a step."""


def drop_in(keras_class: Any, name: str, *before: type, doc: str = "", **extras: Any) -> Any:
    """A class that stands in the place of one of Keras'.

    Args:
        keras_class: Keras' own class.
        name: the module that it is found in, as users write it.
        before: what comes before it in the bases; the first is a `FusedOptimizer`.
        doc: lines for its docstring, about the extras.
        extras: keyword-only arguments beyond `EXTRAS`, with their defaults.
    """
    called = keras_class.__name__
    fused: Any = before[0]
    rule = dialects.get(fused.dialect).spelling(called).rule
    module = fused.__module__.rpartition(".")[0]
    own = {"rule": rule, "__module__": module, "keras_signature": inspect.signature(keras_class)}
    made: Any = type(called, (*before, keras_class), own)
    made.__doc__ = f"""{name}.{called} in one fused step: the same arguments and numbers.

    Args:
        All arguments of {name}.{called}: as there.
        weight_decay: also a schedule, a callable of the iteration.
        groups: `isostep.Group(pattern, **hyperparameters)` over the names of variables: over
            `variable.path` in Keras 3, over `variable.name` in tf_keras. `lr_ratio` is a factor on
            the optimizer's learning rate; a number as `learning_rate` under a schedule is the rate
            at its start.
        nonfinite: `"propagate"`, or `"skip"`: a step with an infinite or NaN gradient changes
            nothing but the iteration count.
        report: measure norms and non-finite counts in each step; see `report`.
        {doc}
    """
    *given, rest = own["keras_signature"].parameters.values()  # the last: other keyword arguments
    extra = [
        inspect.Parameter(argument, inspect.Parameter.KEYWORD_ONLY, default=default)
        for argument, default in {**EXTRAS, **extras}.items()
    ]
    made.__signature__ = own["keras_signature"].replace(parameters=[*given, *extra, rest])
    return made


SLOTS: dict[str, dict[str, str]] = {
    "SGD": {"momentum_buffer": "momentums"},
    "Adagrad": {"sum": "_accumulators"},
    "RMSprop": {
        "square_avg": "_velocities",
        "momentum_buffer": "_momentums",
        "grad_avg": "_average_gradients",
    },
    "Adadelta": {"square_avg": "_accumulated_grads", "acc_delta": "_accumulated_delta_vars"},
    "Adam": {
        "exp_avg": "_momentums",
        "exp_avg_sq": "_velocities",
        "max_exp_avg_sq": "_velocity_hats",
    },
    "Adafactor": {"row": "_r", "column": "_c", "exp_avg_sq": "_v"},
}
SLOTS["AdamW"] = SLOTS["Adam"]
"""By rule and slot: the list that `build` makes, one variable for each of the model's."""


class Absent:
    """A variable that the framework keeps and the fused step has no use for.

    It has its place in saved states, so that these are the framework's own: zeros when saved, and
    nothing is taken from it when loaded. It has no memory.

    Args:
        shape, dtype: of the framework's variable.
        name: its name.
    """

    def __init__(self, shape: Sequence[int], dtype: str, name: str) -> None:
        self.shape, self.dtype, self.name = tuple(shape), dtype, name

    def numpy(self) -> np.ndarray[Any, Any]:
        """What is saved of it."""
        return np.zeros(self.shape, as_dtype(self.dtype))

    def assign(self, value: Any) -> None:
        """Take nothing."""


@dataclass
class Extras:
    """What isostep keeps in an optimizer of Keras.

    Args:
        groups, nonfinite, report: the arguments of these names.
        names, paths: patterns and full names of the variables that do not decay, for the
            configuration.
        restored: full names of those, from a configuration: there are no variables in it.
        titles: of the groups that the statistics are about.
        statistics: the variable that steps write what they measure to.
        absent: what the framework would keep and isostep does not, each behind the variable that
            the framework makes before it.
        storing: the optimizer is being saved or loaded.
        waiting: a state that was loaded before there were variables for it, and how many of its
            values were taken.
    """

    groups: tuple[Group, ...]
    nonfinite: str
    report: bool
    names: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()
    titles: tuple[str, ...] = ()
    statistics: Any = None
    absent: list[tuple[Any, Absent]] = field(default_factory=list[tuple[Any, "Absent"]])
    storing: bool = False
    waiting: tuple[int, tuple[Any, ...]] | None = None

    def __post_init__(self) -> None:
        if self.nonfinite not in NONFINITE:
            raise HyperparameterError(
                f"nonfinite={self.nonfinite!r} is not allowed: use one of "
                f"{', '.join(NONFINITE)} (a compiled step cannot raise)"
            )
        self.groups, self.report = tuple(as_groups(self.groups)), bool(self.report)


def _check_rate(rate: Any) -> None:
    """Refuse a number that is no learning rate; of variables and schedules a step reads it."""
    if isinstance(rate, numbers.Real):
        SIGNED_LR.check(rate, "learning_rate")


Framework: Any = object
"""Stands for the class of Keras that follows `FusedOptimizer` in the bases."""


class FusedOptimizer(Framework):
    """The fused step, for a class of Keras that follows it in the bases.

    A front-end says how its variables are called, and of what dtype they are.
    """

    rule: ClassVar[str]
    dialect: ClassVar[str]
    keras_signature: ClassVar[inspect.Signature]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        extras = Extras(**{name: kwargs.pop(name, default) for name, default in EXTRAS.items()})
        own = {k: v for k, v in kwargs.items() if k in self.keras_signature.parameters}
        given = self.keras_signature.bind_partial(*args, **own).arguments
        _check_rate(given.get("learning_rate"))
        super().__init__(*args, **kwargs)
        self._extras = extras
        self.refuse_overridden()

    @property
    def learning_rate(self) -> Any:
        """The learning rate, as Keras has it.

        Raises:
            HyperparameterError: it is set to a number that is not finite.
        """
        return super().learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        _check_rate(learning_rate)
        theirs: Any = getattr(super(FusedOptimizer, type(self)), "learning_rate")  # noqa: B009
        theirs.fset(self, learning_rate)

    # -- what a front-end says -------------------------------------------------------------------

    def stepped_variables(self) -> list[Any]:
        """The variables that the optimizer was built with."""
        raise NotImplementedError

    def name_of(self, variable: Any) -> str:
        """What groups and exclusions call a variable."""
        raise NotImplementedError

    def dtype_of(self, variable: Any) -> str:
        """The dtype that a variable is stored in."""
        raise NotImplementedError

    @property
    def engine(self) -> Engine:
        """What runs a step."""
        return "array"

    @property
    def crew(self) -> Crew:
        """The threads that kernels run on."""
        return HOST

    def concretely(self) -> AbstractContextManager[Any]:
        """A context in which schedules give numbers, also while a step is traced."""
        raise NotImplementedError

    def serialize_schedule(self, schedule: Any) -> Any:
        """A schedule as plain data."""
        raise NotImplementedError

    @classmethod
    def deserialize_schedule(cls, data: Any, custom_objects: Any) -> Any:
        """The schedule that plain data describe."""
        raise NotImplementedError

    # -- what a step stands on -------------------------------------------------------------------

    def hyper_groups(self, variables: Sequence[Any]) -> tuple[list[HyperGroup], list[int]]:
        """The groups of hyperparameters, and the group of each variable.

        A learning rate of None in them is the optimizer's, which each step reads anew.

        Raises:
            UnknownNameError: a pattern matches none of these variables, or a hyperparameter of a
                group is unknown.
            HyperparameterError: a value is out of range.
        """
        rule = rules.get(self.rule)
        spelling = dialects.get(self.dialect).spelling(rule)
        given = {a: live(getattr(self, a)) for a in spelling.arguments if a != "learning_rate"}
        if given.get("weight_decay", 0.0) is None:  # so Keras says that there is none
            given["weight_decay"] = 0.0
        rate = self._learning_rate if callable(self._learning_rate) else 1.0
        default = spelling.resolve(rule, {"learning_rate": rate, **given})
        places = assign([self.name_of(v) for v in variables], self._extras.groups)
        own: list[dict[str, Any]] = [{}, *(dict(g.hyperparameters) for g in self._extras.groups)]
        found: dict[tuple[int, bool], int] = {}
        groups: list[HyperGroup] = []
        membership: list[int] = []
        for variable, place in zip(variables, places, strict=True):
            decays = bool(self._use_weight_decay(variable))
            key = (place + 1, decays)
            if key not in found:
                found[key] = len(groups)
                changed = {k: live(v) for k, v in own[key[0]].items()}
                values, ratio = group_values(spelling, rule, default, changed, self.concretely)
                if values["lr"] is default["lr"] or not changed.keys() & {"learning_rate", "lr"}:
                    values["lr"] = None
                if not decays:
                    values["weight_decay"] = 0.0
                title = (
                    ", ".join(self._extras.groups[place].patterns) if place >= 0 else "(default)"
                )
                groups.append(HyperGroup(title + ("" if decays else ", no decay"), values, ratio))
            membership.append(found[key])
        return groups, membership

    def options(self) -> Options:
        """What a step does besides the rule."""
        ema = None
        if self.use_ema:
            start = dialects.get(self.dialect).averaging.start
            ema = EMA(
                live(self.ema_momentum),
                overwrite_every=self.ema_overwrite_frequency or None,
                start=start,
            )
        return Options(
            clip=self._clip(),
            ema=ema,
            nonfinite="skip" if self._extras.nonfinite == "skip" else "propagate",
            state_dtype="param",
            report=self._extras.report,
        )

    def _clip(self) -> Clip | None:
        """What bounds gradients; of several the first in Keras' order acts."""
        order = {"norm": "clipnorm", "global_norm": "global_clipnorm", "value": "clipvalue"}
        for kind, argument in order.items():
            bound = live(getattr(self, argument))
            if callable(bound) or (bound and bound > 0):
                return Clip(**{kind: bound})
        return None

    def stepper(self, engine: Engine, arrays: Any = None, allocate: Any = None) -> Stepper:
        """A stepper over the variables that this optimizer was built with.

        Args:
            engine: what runs passes.
            arrays: gives the array of a variable; default: stand-ins for them and for their slots.
            allocate: finds the arrays that are kept.
        """
        variables = self.stepped_variables()
        groups, membership = self.hyper_groups(variables)
        rule, dialect = rules.get(self.rule), dialects.get(self.dialect)
        spelling = dialect.spelling(rule)
        options = self.options()
        made = Stepper(
            rule,
            dialect,
            spelling,
            groups,
            options,
            engine,
            allocate or self._stand_in_slot,
            crew=self.crew,
        )
        for index, (variable, group) in enumerate(zip(variables, membership, strict=True)):
            if getattr(variable, "overwrite_with_gradient", False):
                continue  # Keras assigns it; there are no slots
            array = (arrays or self._stand_in)(variable)
            own = None if engine == "native" else self._stand_in(variable)
            made.add(str(index), array, group, own=own)
        return made

    def settings(self) -> tuple[Any, ...]:
        """What decides about steps and can be set at any time: a step looks whether it has."""
        found = (getattr(self, name) for name in self._settable())
        extras = self._extras
        plain = tuple(value if is_plain(value) else _Same(value) for value in found)
        return (*plain, extras.names, extras.paths)

    def kept(self, leaf: Leaf, name: str) -> Any:
        """The variable that holds slot `name`, or `average`, of a leaf.

        Raises:
            HyperparameterError: it was not made, because what it belongs to was off in `build`.
        """
        attribute = SLOTS[self.rule].get(name, "_model_variables_moving_average")
        held = getattr(self, attribute, ())
        found = held[int(leaf.name)] if len(held) > int(leaf.name) else None
        if found is None or isinstance(found, Absent):
            raise HyperparameterError(
                f"{self.rule} has no variable for {name!r}: what it belongs to was switched on "
                f"after the optimizer was built; make a new optimizer"
            )
        return found

    def _stand_in(self, variable: Any) -> Any:
        return stand_in(tuple(variable.shape), self.dtype_of(variable))

    def _stand_in_slot(self, leaf: Leaf, name: str, per: Any, dtype: Any, initial: Any) -> Any:
        return self._stand_in(self.kept(leaf, name)).reshape(-1)

    # -- what Keras does not have ----------------------------------------------------------------

    def plan(self) -> Plan:
        """What a step will do: groups, slots, bytes and kernels of each variable; nothing runs.

        Raises:
            HyperparameterError: the optimizer was not built yet.
        """
        if not self.built:
            raise HyperparameterError("plan() needs variables: call optimizer.build(variables)")
        made = self.stepper(self.engine)
        for group in made.groups:
            if group.values["lr"] is None:
                group.values["lr"] = float(self.learning_rate)
        variables = self.stepped_variables()
        for leaf in made.leaves:
            leaf.name = self.name_of(variables[int(leaf.name)])
        return made.plan(tuple(leaf.array.dtype.name for leaf in made.leaves))

    @property
    def report(self) -> Report | None:
        """What the last step measured, if the optimizer was made with `report=True`.

        Reading it waits for the step.
        """
        extras = self._extras
        if extras.statistics is None:
            return None
        sums: Any = np.reshape(extras.statistics.numpy(), (-1, len(SUMS)))
        return Report.of(extras.titles, sums, int(self.iterations), extras.nonfinite)

    @property
    def statistics(self) -> Any:
        """The variable that a step writes what it measures to."""
        return self._extras.statistics

    @property
    def overridden(self) -> tuple[str, ...]:
        """The methods of Keras' step that a subclass has replaced. If there are any, the step and
        the variables are Keras' own."""
        return extension.overridden(self, dialects.get(self.dialect).extension_points)

    def refuse_overridden(self) -> None:
        """Raise if a method is overridden and something is asked for that Keras' own step lacks."""
        if self.overridden:
            self.refuse_extras(f"with {', '.join(self.overridden)} overridden")

    def refuse_extras(self, where: str) -> None:
        """Raise if something is asked for that Keras' own step, one variable at a time, lacks.

        Args:
            where: what makes it Keras' own step, in words.
        """
        why = f"{where}, where variables are stepped one at a time"
        extension.refuse(self.extras_used, why, "leave it out")

    @property
    def extras_used(self) -> list[str]:
        """The options of isostep that differ from their defaults."""
        given = {name: getattr(self._extras, name) for name in EXTRAS}
        used = [name for name, default in EXTRAS.items() if given[name] != default]
        return used + ["weight_decay as a schedule"] * callable(self.weight_decay)

    def add_statistics(self) -> None:
        """Make the variable that steps write what they measure to."""
        if self._extras.report:
            self._extras.titles = tuple(
                g.name for g in self.hyper_groups(self.stepped_variables())[0]
            )
            self._extras.statistics = self.add_variable(
                shape=(len(self._extras.titles) * len(SUMS),), dtype="float32", name="statistics"
            )

    # -- saving ----------------------------------------------------------------------------------

    def add_absent(self, reference: Any, name: str) -> Absent:
        """Leave the place of a variable of the framework's, of the shape of one of the model's.

        Args:
            reference: the model's variable.
            name: what the framework calls it.
        """
        made = Absent(reference.shape, self.dtype_of(reference), name)
        self._extras.absent.append((super().variables[-1], made))
        return made

    @property
    def variables(self) -> Any:
        """The optimizer's variables; while it is saved or loaded those that the framework's own
        class has, so that each can load the other's state. Statistics are none of them, so that a
        state can be loaded with `report` on or off."""
        found: Any = super().variables
        return type(found)(self._saved(found)) if self._extras.storing else found

    def _saved(self, variables: Any) -> list[Any]:
        """The variables as the framework has them."""
        extras = self._extras
        found: list[Any] = []
        for variable in variables:
            if variable is not extras.statistics:
                found.append(variable)
                found += [gone for before, gone in extras.absent if before is variable]
        return found

    @contextlib.contextmanager
    def _storing(self) -> Generator[Any]:
        """The optimizer's variables are those of a saved state inside this context."""
        self._extras.storing = True
        try:
            yield self.variables
        finally:
            self._extras.storing = False

    def save_own_variables(self, store: Any) -> None:
        """Put the state into a store of Keras, as the framework's own class does."""
        with self._storing():
            super().save_own_variables(store)

    def load_own_variables(self, store: Any) -> None:
        """Take the state from a store of Keras that this class or the framework's own has filled.

        Where the optimizer has no variables yet, it takes the state when it makes them.

        Raises:
            StateError: the state is of another optimizer or of other variables; nothing was
                changed.
        """
        values = tuple(np.asarray(store[str(place)]) for place in range(len(store.keys())))
        # Before its first step an optimizer may have no more than a count and a learning rate.
        unstepped = len(values) <= 2 and not any(values[:1])
        with self._storing() as variables:
            both = min(len(variables), len(values))
            if self.built and not unstepped:
                self._take(variables, values)
            else:
                self._take(variables[:both], values[:both])
        self._extras.waiting = None if self.built or unstepped else (both, values)

    def take_waiting(self) -> None:
        """Take the rest of a state that was loaded before there were variables for it, if one was.

        Raises:
            StateError: it does not fit. It waits on, so that no step begins anew in its stead.
        """
        if self._extras.waiting is not None:
            taken, values = self._extras.waiting
            with self._storing() as variables:
                self._take(variables, values, taken)
            self._extras.waiting = None

    def _take(self, variables: Sequence[Any], values: Sequence[Any], start: int = 0) -> None:
        why = _mismatch(variables, values)
        if why:
            raise StateError(
                f"the saved state is not one of {self.name!r}: {why}. Nothing was changed. Load it "
                f"into an optimizer of the class and options that it was saved from, for the same "
                f"variables; or load the weights before compiling with a new optimizer"
            )
        for variable, value in list(zip(variables, values, strict=True))[start:]:
            variable.assign(value)

    def exclude_from_weight_decay(
        self, var_list: Sequence[Any] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """As Keras' own; the configuration keeps what was excluded.

        Args:
            var_list: variables that do not decay.
            var_names: regular expressions, searched for in the names of variables.

        Raises:
            ValueError: the optimizer was built already.
        """
        super().exclude_from_weight_decay(var_list, var_names)
        self._extras.names = tuple(var_names or ())
        self._extras.paths = tuple(self.name_of(v) for v in var_list or ())
        self._extras.restored = ()

    def _use_weight_decay(self, variable: Any) -> bool:
        if self.name_of(variable) in self._extras.restored:
            return False
        return bool(super()._use_weight_decay(variable))

    def get_config(self) -> dict[str, Any]:
        """What `from_config` makes an equal optimizer of; it can be written as JSON."""
        config: dict[str, Any] = super().get_config()
        extras = self._extras
        # A learning rate comes out as np.float32 in tf_keras.
        config = {k: v.item() if isinstance(v, np.generic) else v for k, v in config.items()}
        # tf_keras forgets adaptive_epsilon.
        spelling = dialects.get(self.dialect).spelling(self.rule)
        for argument, names in spelling.arguments.items():
            if argument not in config and getattr(self, argument) != spelling.defaults[names[0]]:
                config[argument] = getattr(self, argument)
        for name in config.keys() & {*self._settable()}:
            config[name] = self._as_data(config[name])
        groups: list[dict[str, Any]] = [
            {name: self._as_data(v) for name, v in g.hyperparameters.items()} for g in extras.groups
        ]
        own = {
            "groups": [
                {"match": list(g.patterns), **values}
                for g, values in zip(extras.groups, groups, strict=True)
            ],
            "nonfinite": extras.nonfinite,
            "report": extras.report,
            "excluded_from_weight_decay": [list(extras.names), list(extras.paths)],
        }
        neutral = {**EXTRAS, "groups": [], "excluded_from_weight_decay": [[], []]}
        return config | {name: value for name, value in own.items() if value != neutral[name]}

    @classmethod
    def _settable(cls) -> list[str]:
        """The arguments that may be given as something that is read at each step, but the learning
        rate, which Keras sees to."""
        arguments = dialects.get(cls.dialect).spelling(cls.rule).arguments
        return [name for name in (*arguments, *SETTINGS) if name != "learning_rate"]

    def _as_data(self, value: Any) -> Any:
        """A hyperparameter as plain data: a variable or tensor as the number that it is now."""
        if callable(value):
            return self.serialize_schedule(value)
        return value if is_plain(value) else float(value)

    @classmethod
    def _from_data(
        cls, values: Mapping[str, Any], names: Any, custom_objects: Any
    ) -> dict[str, Any]:
        """The hyperparameters of a configuration, with schedules where there is data of them."""
        return {
            name: cls.deserialize_schedule(value, custom_objects)
            if name in names and isinstance(value, Mapping)
            else value
            for name, value in values.items()
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> Any:
        """An optimizer as the one that `get_config` was asked of.

        Args:
            config: its configuration, which stays as it is.
            custom_objects: objects that the configuration names.
        """
        config = cls._from_data(config, cls._settable(), custom_objects)
        names, paths = config.pop("excluded_from_weight_decay", ((), ()))
        if "groups" in config:
            groups = config["groups"]
            config["groups"] = [cls._from_data(g, g.keys(), custom_objects) for g in groups]
        made: Any = super().from_config(config, custom_objects)
        if names or paths:
            made.exclude_from_weight_decay(var_names=names)
            made._extras.paths = made._extras.restored = tuple(paths)
        return made


def _mismatch(variables: Sequence[Any], values: Sequence[Any]) -> str:
    """Why saved values are not those of these variables; empty if they are."""
    if len(values) != len(variables):
        return f"it has {len(values)} variables, and this optimizer {len(variables)}"
    for place, (variable, value) in enumerate(zip(variables, values, strict=True)):
        if tuple(variable.shape) != value.shape:
            return (
                f"its variable {place} has shape {value.shape}, and this optimizer's "
                f"{variable.name!r} has {tuple(variable.shape)}"
            )
    return ""
