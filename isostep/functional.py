"""A step as a function, for frameworks that compile: arrays in, new arrays out.

The stepper decides, as it does everywhere, which recipe each parameter has; it holds stand-ins,
with shape and dtype and no memory. What the arrays are, and where new ones go, is the front-end's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from isostep import recipe as recipes
from isostep.compile.schedule import Schedule
from isostep.engines import traced
from isostep.engines.leaf import Leaf
from isostep.engines.traced import TracedNamespace, TracedOutcome, TracedScalars, TracedTensor
from isostep.recipe import Recipe
from isostep.report import SUMS
from isostep.stepper import Stepper, arithmetic, dtype_of, machine_epsilon
from isostep.tracing import trace

Arrays = Callable[[Leaf, str], Any]
"""Gives `param`, a slot or `average` of a leaf."""

Kind = tuple[int, str, int | None]
"""A group, the dtype of a parameter, and the steps that it has had, if they are its own."""

Hypers = Sequence[Mapping[str, Any]]
"""The hyperparameters of each group, by the rule's names."""

NOTHING: dict[str, Any] = {}
NO_CLIP: dict[str, Any] = {"clip": None}
NO_AVERAGE: dict[str, Any] = {"average": False, "overwrite": False}
"""Parts of a recipe, switched off."""


def stand_in(shape: Sequence[int], dtype: str) -> np.ndarray[Any, Any]:
    """An array of this shape and dtype that has no memory."""
    return np.broadcast_to(np.zeros((), dtype_of(dtype)), tuple(shape))


@dataclass(frozen=True)
class Task:
    """What one step does with one parameter.

    Args:
        leaf: the parameter.
        recipe: what is done.
        gradient: None if the recipe is idle.
        shape: default: the parameter's; of some of its rows if only these are stepped.
        steps: that the parameter has had; default: as many as there were.
        dtypes: of new arrays, by name, where these are not the dtypes of the old ones.
        present: whether it is stepped, a bool array of no dimension, where that is not known
            before; where it is not, `gradient` has to be zeros. Default: it is.
    """

    leaf: Leaf
    recipe: Recipe
    gradient: Any
    shape: tuple[int, ...] | None = None
    steps: int | None = None
    dtypes: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    present: Any = None

    @property
    def schedule(self) -> Schedule:
        """The passes of the recipe."""
        return trace(self.recipe, recomputes=False)

    @property
    def stores(self) -> list[str]:
        """The names of what it writes."""
        return [name for step in self.schedule.passes for name in step.stores]

    @property
    def arrays(self) -> list[str]:
        """The names of what it reads or writes, besides the gradient: what is written is cast to
        the dtype of the array that it replaces."""
        read = {node.name for step in self.schedule.passes for node in step.inputs}
        return sorted((read - {"grad"}).union(self.stores))

    @property
    def kind(self) -> Kind:
        """What its coefficients depend on."""
        return self.leaf.group, self.leaf.array.dtype.name, self.steps


class Values(NamedTuple):
    """What a step computes.

    Args:
        stores: the new arrays, by task and the order of its `stores`.
        sums: what a report is made of, by group and the order of `report.SUMS`, if the recipes
            report.
        blocked: the number of non-finite gradient elements, if the recipes skip steps; where it is
            not zero, the new arrays are the old ones.
    """

    stores: list[Any]
    sums: list[Any]
    blocked: Any | None


class FunctionalStep:
    """Steps of a stepper's parameters.

    Args:
        stepper: made of stand-ins.
        xp: whose arrays are stepped.
        count_dtype: of the step count and of what is computed from it; None: that of the
            arithmetic of each parameter.
    """

    def __init__(self, stepper: Stepper, xp: TracedNamespace, count_dtype: str | None) -> None:
        self.stepper, self._xp, self._count_dtype = stepper, xp, count_dtype
        self.reading: Callable[[Any, Any], Any] = lambda source, iteration: source(iteration)
        """How a callable hyperparameter is read after so many completed steps."""

    @property
    def sources(self) -> list[Callable[..., Any]]:
        """The callables that coefficients are read from."""
        made = self.stepper
        clips = [made.clip_of(group) for group in made.groups]
        values = [v for group in made.groups for v in (*group.values.values(), group.lr_ratio)]
        values += [clip.threshold for clip in clips if clip]
        values += [made.options.ema.momentum] if made.options.ema else []
        return [value for value in values if callable(value)]

    def tasks(self, given: Mapping[int, Any], without: Mapping[str, Any] = NOTHING) -> list[Task]:
        """A step with these gradients.

        Args:
            given: gradients by place of the leaf.
            without: fields of the recipe that are switched off.
        """
        recipes = {
            k: replace(self.stepper.recipe(leaf), idle=k not in given, **without)
            for k, leaf in enumerate(self.stepper.leaves)
        }
        idle = self.stepper.dialect.averaging.without_gradient
        return [
            Task(self.stepper.leaves[k], recipe, given.get(k))
            for k, recipe in recipes.items()
            if k in given or (idle and recipe.average)
        ]

    def averaging(self) -> list[Task]:
        """What moves the averages and nothing else."""
        made = self.stepper
        return [Task(f, replace(made.recipe(f), idle=True), None) for f in made.leaves]

    def rule_alone(self, place: int, gradient: Any) -> Task:
        """A step of one leaf by its rule, without clipping, decay or average."""
        leaf = self.stepper.leaves[place]
        bare = {**NO_CLIP, **NO_AVERAGE, "decay": None, "report": False, "nonfinite": "propagate"}
        return Task(leaf, replace(self.stepper.recipe(leaf), **bare), gradient)

    def values(
        self,
        tasks: Sequence[Task],
        arrays: Arrays,
        iteration: Any,
        lr: Any = None,
        loss_scale: float = 1.0,
        values: Hypers | None = None,
    ) -> Values:
        """What a step computes.

        Args:
            tasks: what is done.
            arrays: where the old arrays are.
            iteration: number of steps that were completed.
            lr: the learning rate of groups that have none of their own.
            loss_scale: what gradients are divided by, if the recipes unscale.
            values: the hyperparameters of each group in this step; default: the groups' own.
        """
        coefficients = self.coefficients(tasks, iteration, lr, loss_scale, values)
        return self.values_by(tasks, arrays, coefficients)

    def coefficients(
        self,
        tasks: Sequence[Task],
        iteration: Any,
        lr: Any = None,
        loss_scale: float = 1.0,
        values: Hypers | None = None,
    ) -> dict[Kind, dict[str, Any]]:
        """The coefficients that tasks have, by their kind; see `values`.

        Args:
            values: the hyperparameters of each group in this step; default: the groups' own.
        """
        return {
            kind: self._coefficients(kind, iteration, lr, loss_scale, values)
            for kind in dict.fromkeys(task.kind for task in tasks)
        }

    def values_by(
        self,
        tasks: Sequence[Task],
        arrays: Arrays,
        coefficients: Mapping[Kind, Mapping[str, Any]],
    ) -> Values:
        """What a step with these coefficients computes; see `values`."""
        tensors = [self._tensor(task, arrays, coefficients[task.kind]) for task in tasks]
        outcome = traced.step(self._xp, tensors)
        new = zip(tasks, outcome.stores, strict=True)
        stores = [values[name] for task, values in new for name in task.stores]
        return Values(stores, self._sums(tasks, outcome), outcome.blocked)

    def _sums(self, tasks: Sequence[Task], outcome: TracedOutcome) -> list[Any]:
        if not any(task.recipe.report for task in tasks):
            return []
        found: list[Any] = [0.0] * (len(SUMS) * len(self.stepper.groups))
        for task, statistics in zip(tasks, outcome.statistics, strict=True):
            for place, name in enumerate(SUMS):
                if name in statistics:
                    found[len(SUMS) * task.leaf.group + place] += statistics[name]
        return [self._xp.cast(x, "float32") for x in found]

    def _tensor(self, task: Task, arrays: Arrays, coefficients: Mapping[str, Any]) -> TracedTensor:
        leaf = task.leaf
        read = {name: arrays(leaf, name) for name in task.arrays}
        if task.gradient is not None:
            read["grad"] = task.gradient
        shape = leaf.array.shape if task.shape is None else task.shape
        return TracedTensor(
            task.schedule,
            shape,
            leaf.factored_axes,
            read,
            dict(coefficients),
            arithmetic(task.kind[1]),
            task.dtypes,
            task.present,
        )

    def _coefficients(
        self, kind: Kind, iteration: Any, lr: Any, loss_scale: float, values: Hypers | None
    ) -> dict[str, Any]:
        made, xp, (group, parameter, count) = self.stepper, self._xp, kind
        dtype = self._count_dtype or of_coefficients(parameter)

        def read(value: Any) -> Any:
            now = self.reading(value, iteration) if callable(value) else value
            return _number(xp, now, dtype)

        given = made.groups[group].values if values is None else values[group]
        h = SimpleNamespace(**{k: read(v) for k, v in given.items()})
        for name in made.spelling.none_is_machine_epsilon:
            if getattr(h, name) is None:
                setattr(h, name, machine_epsilon(parameter))
        if h.lr is None:
            h.lr = xp.cast(lr, dtype)
        if made.groups[group].lr_ratio != 1.0:
            h.lr = h.lr * read(made.groups[group].lr_ratio)
        done = xp.cast(iteration, dtype) + 1.0
        return recipes.coefficients(
            TracedScalars(xp, dtype),
            done if count is None else xp.cast(count, dtype) + 1.0,
            done,
            h,
            rule=made.rule,
            clip=made.clip_of(made.groups[group]),
            clip_eps=made.dialect.clip_eps,
            ema=made.options.ema,
            decay=made.decay_of(made.groups[group]),
            decay_times_lr=made.spelling.decay_times_lr,
            loss_scale=loss_scale,
            read=lambda value, declared: read(value),
        )


def of_coefficients(dtype: str) -> str:
    """The dtype of the coefficients of parameters of a dtype: real numbers."""
    return "float64" if dtype in ("float64", "complex128") else "float32"


def _number(xp: TracedNamespace, value: Any, dtype: str) -> Any:
    """What a schedule gave in the dtype of the count; everything else as it is."""
    known = value is None or isinstance(value, bool | int | float | str)
    return value if known else xp.cast(value, dtype)
