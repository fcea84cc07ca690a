"""An optimizer as optax has it, a pair of pure functions, and beside them the fused step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from isostep.dialects import Dialect, Spelling
from isostep.engines.leaf import Leaf
from isostep.errors import GradientError
from isostep.functional import FunctionalStep, Task, stand_in
from isostep.groups import Group, assign
from isostep.jax.namespace import JaxNamespace
from isostep.jax.native import Engine, takes_kernels, values
from isostep.jax.trees import Form, full
from isostep.plan import Plan
from isostep.report import SUMS, Report
from isostep.rules import Rule
from isostep.stepper import HyperGroup, Options, Stepper

XP = JaxNamespace()
Mask = Callable[[Any], Any] | Any
First = dict[str, tuple[int | None, Any]]
"""Of each array kept for a parameter the axis that it lacks, and its first value."""


class State(NamedTuple):
    """What an optimizer keeps; a pytree.

    Args:
        count: number of completed steps, int32.
        slots: by the dialect's name of each slot a tree like the parameters; None stands where a
            parameter has no such slot.
        average: moving average of the parameters, or None.
        master: float32 copies of float16 and bfloat16 parameters, or None.
        statistics: what the last step measured, or None; see `Optimizer.report`.
    """

    count: Any
    slots: dict[str, Any]
    average: Any = None
    master: Any = None
    statistics: Any = None


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
    """

    rule: Rule
    dialect: Dialect
    spelling: Spelling
    values: Mapping[str, Any]
    groups: Sequence[tuple[Group, Mapping[str, Any], Any]]
    options: Options
    mask: Mask = None
    engine: Engine = "auto"


class Optimizer(optax.GradientTransformationExtraArgs):
    """`init` and `update` of optax' contract, and a step in one.

    Every function is pure and can be traced: under jit, vmap, grad and scan, in `optax.chain` and
    optax' wrappers.
    """

    steps: Steps

    def __new__(cls, made: Made) -> Optimizer:
        """The optimizer of what it is made of."""
        steps = Steps(made)
        update: Any = steps.update
        self: Any = super().__new__(cls, steps.init, update)
        self.steps = steps
        return self

    def apply(self, params: Any, grads: Any, state: State) -> tuple[Any, State]:
        """One step, without a tree of updates between.

        Under `jax.jit(optimizer.apply, donate_argnums=(0, 2))` it is in place. What runs it is the
        `engine` of the optimizer: isostep's kernels need a program for one CPU, and are not
        exported with it. What `vmap` and derivatives transform is the array code.

        Args:
            params: the parameters.
            grads: a gradient for each; None for those without.
            state: from `init` or the last step.

        Returns:
            The new parameters, in their own dtypes, and the new state.

        Raises:
            GradientError: a gradient has another shape than its parameter.
            HyperparameterError: gradients or state have another structure than the parameters.
            RuntimeError: the engine is `"native"`, and kernels cannot run; under jit, it is raised
                when the program is compiled.
        """
        return self.steps.apply(params, grads, state)

    def averaged(self, state: State) -> Any:
        """The moving average of the parameters, a tree like them; None without `ema`."""
        return state.average

    def report(self, state: State) -> Report | None:
        """What the last step measured, if the optimizer was made with `report=True`; reading it
        waits for the step."""
        return self.steps.report(state)

    def plan(self, params: Any) -> Plan:
        """What a step will do: groups, slots, bytes of each parameter; nothing runs.

        Args:
            params: the parameters, or anything with their shapes and dtypes.
        """
        return self.steps.plan(params)


class Steps:
    """The functions of one optimizer.

    Args:
        made: what it is made of.
    """

    def __init__(self, made: Made) -> None:
        self._made = made
        self._titles: tuple[str, ...] = ()
        self._function = cache(self._build)

    # -- optax' contract -------------------------------------------------------------------------

    def init(self, params: Any) -> State:
        """The state before the first step."""
        form, leaves = Form.of(params)
        function, first = self._prepared(form, params)
        kept: dict[str, list[Any]] = {}
        for leaf in function.stepper.leaves:
            place = int(leaf.name)
            dtypes = {n: a.dtype for n, a in function.stepper.kept(leaf).items()}
            for name, (gone, initial) in first[place].items():
                like, dtype = leaves[place], dtypes[name]
                if name in ("average", "master"):
                    array = jnp.array(like, dtype, copy=True)  # both may be donated
                else:
                    shape = tuple(n for axis, n in enumerate(like.shape) if axis != gone)
                    value: Any = initial(0) if callable(initial) else initial
                    array = full(like, shape, gone, dtype, value)
                kept.setdefault(name, [None] * len(leaves))[place] = array
        trees = {name: form.tree_of(arrays) for name, arrays in kept.items()}
        sums = len(function.stepper.groups) * len(SUMS)
        return State(
            count=jnp.zeros((), jnp.int32),
            slots={self._called(n): t for n, t in trees.items() if n not in ("average", "master")},
            average=trees.get("average"),
            master=trees.get("master"),
            statistics=jnp.zeros(sums, jnp.float32) if self._made.options.report else None,
        )

    def update(
        self, updates: Any, state: State, params: Any = None, **extra_args: Any
    ) -> tuple[Any, State]:
        """What is to be added to the parameters, and the new state."""
        return self._step(updates, state, params, delta=True)

    def apply(self, params: Any, grads: Any, state: State) -> tuple[Any, State]:
        """The new parameters and the new state."""
        return self._step(grads, state, params, delta=False)

    def _step(self, grads: Any, state: State, params: Any, delta: bool) -> tuple[Any, State]:
        form, leaves = Form.of(grads if params is None else params)
        function, _ = self._prepared(form, params)
        given = _gradients(form, grads)
        held = _Held(form, leaves, state, self._made.spelling.slots, known=params is not None)
        tasks = [
            replace(task, recipe=replace(task.recipe, delta=delta and not task.recipe.master))
            for task in function.tasks(given)
        ]
        if delta:
            found = function.values(tasks, held.read, state.count)
        else:
            required = self._made.engine == "native"
            found = values(function, tasks, held.read, state.count, required)
        held.write(tasks, found.stores)
        new = held.updates() if delta else held.params()
        done = 1 if found.blocked is None else jnp.where(found.blocked > 0, 0, 1)
        statistics = jnp.asarray(found.sums) if len(found.sums) else state.statistics
        return form.tree_of(new), held.state(state.count + done, statistics)

    # -- what is decided once for each form ------------------------------------------------------

    def _prepared(self, form: Form, params: Any) -> tuple[FunctionalStep, list[First]]:
        return self._function(form, self._decays(form, params))

    def _decays(self, form: Form, params: Any) -> tuple[bool, ...]:
        """Whether each parameter decays."""
        mask = self._made.mask
        if mask is None:
            return (True,) * len(form.names)
        mask = mask(params) if callable(mask) else mask
        spread = jax.tree.map(lambda m, part: jax.tree.map(lambda _: m, part), mask, params)
        return tuple(bool(m) for m in form.leaves(spread, "the mask"))

    def _build(self, form: Form, decays: tuple[bool, ...]) -> tuple[FunctionalStep, list[First]]:
        made = self._made
        places = assign(form.names, [group for group, _, _ in made.groups])
        index: dict[tuple[int, bool], int] = {}
        groups: list[HyperGroup] = []
        for key in zip(places, decays, strict=True):
            if key not in index:
                index[key] = len(groups)
                groups.append(self._group(*key))
        self._titles = tuple(group.name for group in groups)
        first: list[First] = [{} for _ in form.names]

        def allocate(leaf: Leaf, name: str, per: Any, dtype: Any, initial: Any) -> Any:
            axes = leaf.factored_axes or (None, None)
            gone = {"element": None, "row": axes[1], "column": axes[0]}[per]
            first[int(leaf.name)][name] = (gone, initial)
            return stand_in((math.prod(leaf.slot_shape(per)),), dtype.name)

        sizes = [math.prod(shape) for shape in form.shapes]
        engine = "native" if takes_kernels(made.engine, sizes) else "array"
        stepper = Stepper(
            made.rule, made.dialect, made.spelling, groups, made.options, engine, allocate
        )
        for place, key in enumerate(zip(places, decays, strict=True)):
            own = stand_in(form.shapes[place], form.dtypes[place])
            stepper.add(str(place), own, index[key], own=own)
        return FunctionalStep(stepper, XP, None), first

    def _group(self, place: int, decays: bool) -> HyperGroup:
        made = self._made
        group, values, ratio = made.groups[place] if place >= 0 else (None, made.values, 1.0)
        title = "(default)" if group is None else ", ".join(group.patterns)
        if decays:
            return HyperGroup(title, dict(values), ratio)
        return HyperGroup(f"{title}, no decay", {**values, "weight_decay": 0.0}, ratio)

    def _called(self, slot: str) -> str:
        return self._made.spelling.slots.get(slot, slot)

    # -- looking in ------------------------------------------------------------------------------

    def report(self, state: State) -> Report | None:
        """What the last step measured."""
        if state.statistics is None:
            return None
        sums: Any = np.reshape(np.asarray(state.statistics), (-1, len(SUMS)))
        return Report.of(self._titles, sums, int(state.count), self._made.options.nonfinite)

    def plan(self, params: Any) -> Plan:
        """What a step will do."""
        form, _ = Form.of(params)
        plan = self._prepared(form, params)[0].stepper.plan(form.dtypes)
        named = [replace(entry, name=form.names[int(entry.name)]) for entry in plan.entries]
        return replace(plan, entries=named)


def _gradients(form: Form, grads: Any) -> dict[int, Any]:
    """The gradients by the place of their parameter; those that are None are left out."""
    leaves = form.leaves(grads, "the gradients")
    found = {k: jnp.asarray(g) for k, g in enumerate(leaves) if g is not None}
    for k, gradient in found.items():
        if gradient.shape != form.shapes[k]:
            raise GradientError(
                f"the gradient of {form.names[k]!r} has shape {gradient.shape}, and the parameter "
                f"{form.shapes[k]}"
            )
    return found


class _Held:
    """The arrays of one step: what is read, and what comes in its place."""

    def __init__(
        self, form: Form, leaves: list[Any], state: State, called: Mapping[str, str], known: bool
    ) -> None:
        self._form, self._called, self._known = form, called, known
        self._old = {"model": list(leaves)}
        for name, tree in state.slots.items():
            self._old[name] = form.leaves(tree, f"the state's {name}")
        for name, tree in (("average", state.average), ("master", state.master)):
            self._old[name] = [None] * len(leaves)
            if tree is not None:
                self._old[name] = form.leaves(tree, f"the state's {name}")
        self._slots = list(state.slots)
        self._new = {name: list(arrays) for name, arrays in self._old.items()}
        self._updates: list[Any] = [jnp.zeros_like(leaf) for leaf in leaves]

    def _place_of(self, leaf: Leaf, name: str) -> tuple[str, int]:
        place = int(leaf.name)
        if name == "param":
            name = "model" if self._old["master"][place] is None else "master"
        return self._called.get(name, name), place

    def read(self, leaf: Leaf, name: str) -> Any:
        """An array before the step."""
        if name == "update":
            return self._updates[int(leaf.name)]
        if name in ("param", "model") and not self._known:
            raise ValueError(
                "update() needs the parameters for this: optimizer.update(grads, state, params)"
            )
        name, place = self._place_of(leaf, name)
        return self._old[name][place]

    def write(self, tasks: Sequence[Task], stores: Sequence[Any]) -> None:
        """Take what a step computed."""
        values = iter(stores)
        for task in tasks:
            for name in task.stores:
                if name == "update":
                    self._updates[int(task.leaf.name)] = next(values)
                else:
                    called, place = self._place_of(task.leaf, name)
                    self._new[called][place] = next(values)

    def params(self) -> list[Any]:
        """The new parameters."""
        return self._new["model"]

    def updates(self) -> list[Any]:
        """What is to be added to the parameters; float32 where there is a master copy, so that
        the sum is the copy rounded once."""
        masters = self._old["master"]
        return [
            update if master is None else new.astype(jnp.float32) - old.astype(jnp.float32)
            for update, master, new, old in zip(
                self._updates, masters, self._new["model"], self._old["model"], strict=True
            )
        ]

    def state(self, count: Any, statistics: Any) -> State:
        """The new state."""
        trees = {
            name: None if all(a is None for a in arrays) else self._form.tree_of(arrays)
            for name, arrays in self._new.items()
        }
        slots = {name: trees[name] for name in self._slots}
        return State(count, slots, trees["average"], trees["master"], statistics)
