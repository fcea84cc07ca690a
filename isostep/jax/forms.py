"""What is decided once for parameters of one form: groups, and the function that steps them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import jax

from isostep.engines.leaf import Leaf
from isostep.functional import FunctionalStep, stand_in
from isostep.groups import assign
from isostep.jax.made import Made
from isostep.jax.namespace import JaxNamespace
from isostep.jax.native import takes_kernels
from isostep.jax.trees import Form
from isostep.stepper import HyperGroup, Stepper

XP = JaxNamespace()
First = dict[str, tuple[int | None, Any]]
"""Of each array kept for a parameter the axis that it lacks, and its first value."""


class Prepared(NamedTuple):
    """What is decided once for parameters of one form.

    Args:
        function: computes their steps; it holds no array, and no value that may be one.
        first: how what is kept of each parameter starts.
        groups: what the function goes by, with values.
    """

    function: FunctionalStep
    first: list[First]
    groups: list[HyperGroup]


class Forms:
    """What is decided for the forms that an optimizer meets.

    Args:
        made: what it is made of.

    Attributes:
        titles: the names of the groups of the last form.
    """

    def __init__(self, made: Made) -> None:
        self._made = made
        self.titles: tuple[str, ...] = ()
        self._function = cache(self._build)

    def prepared(
        self, form: Form, decays: tuple[bool, ...], dtypes: Sequence[str | None]
    ) -> Prepared:
        """What is decided for a form.

        Args:
            form: of the parameters.
            decays: whether each decays.
            dtypes: that each is stepped as; None: by optax.
        """
        return self._function(form, decays, tuple(dtypes))

    def decays(self, form: Form, params: Any) -> tuple[bool, ...]:
        """Whether each parameter decays."""
        mask = self._made.mask
        if mask is None or not form.names:
            return (True,) * len(form.names)
        mask = mask(params) if callable(mask) else mask
        spread = jax.tree.map(lambda m, part: jax.tree.map(lambda _: m, part), mask, params)
        return tuple(bool(m) for m in form.leaves(spread, "the mask"))

    def _build(
        self, form: Form, decays: tuple[bool, ...], dtypes: tuple[str | None, ...]
    ) -> Prepared:
        made = self._made
        patterns = [group for group, _, _ in made.groups] if form.names else []
        places = assign(form.names, patterns)
        index: dict[tuple[int, bool], int] = {}
        groups: list[HyperGroup] = []
        for key in zip(places, decays, strict=True):
            if key not in index:
                index[key] = len(groups)
                groups.append(self._group(*key))
        self.titles = tuple(group.name for group in groups)
        first: list[First] = [{} for _ in form.names]

        def allocate(leaf: Leaf, name: str, per: Any, dtype: Any, initial: Any) -> Any:
            axes = leaf.factored_axes or (None, None)
            gone = {"element": None, "row": axes[1], "column": axes[0]}[per]
            first[int(leaf.name)][name] = (gone, initial)
            return stand_in((math.prod(leaf.slot_shape(per)),), dtype.name)

        sizes = [math.prod(shape) for shape in form.shapes]
        engine = "native" if takes_kernels(made.engine, sizes) else "array"
        bare = [replace(g, values=_without_arrays(g.values), lr_ratio=1.0) for g in groups]
        stepper = Stepper(
            made.rule, made.dialect, made.spelling, bare, made.options, engine, allocate
        )
        for place, dtype in enumerate(dtypes):
            if dtype is not None:
                own = stand_in(form.shapes[place], dtype)
                stepper.add(str(place), own, index[places[place], decays[place]], own=own)
        function = FunctionalStep(stepper, XP, None)
        return Prepared(function, first, groups)

    def _group(self, place: int, decays: bool) -> HyperGroup:
        made = self._made
        group, values, ratio = made.groups[place] if place >= 0 else (None, made.values, 1.0)
        title = "(default)" if group is None else ", ".join(group.patterns)
        if decays:
            return HyperGroup(title, dict(values), ratio)
        return HyperGroup(f"{title}, no decay", {**values, "weight_decay": 0.0}, ratio)


def _without_arrays(values: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters with one and the same function for all schedules: what is cached must not
    hold arrays, which may be traced."""
    return {name: _later if callable(value) else value for name, value in values.items()}


def _later(step: Any) -> Any:
    raise AssertionError("hyperparameters are read before a step")
