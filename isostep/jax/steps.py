"""The steps of one optimizer, and what can be seen of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from isostep.errors import GradientError
from isostep.functional import Task
from isostep.jax.forms import Forms
from isostep.jax.held import Held
from isostep.jax.layout import Kept, State, written
from isostep.jax.made import Made
from isostep.jax.native import values
from isostep.jax.states import States
from isostep.jax.trees import Form, as_array
from isostep.jax.ways import Way, Ways
from isostep.plan import Plan, PlanEntry
from isostep.report import SUMS, Report
from isostep.stepper import HyperGroup


class Steps:
    """The functions of one optimizer.

    Args:
        made: what it is made of.
    """

    def __init__(self, made: Made) -> None:
        self._made = made
        self._forms, self._ways = Forms(made), Ways(made)
        self.states = States(made, self._forms, self._ways)

    def update(
        self, updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        """What is to be added to the parameters, and the new state."""
        held, state = self._step(updates, state, params, delta=True)
        return held.updates(), state

    def apply(self, params: Any, grads: Any, state: Any) -> tuple[Any, Any]:
        """The new parameters and the new state."""
        held, state = self._step(grads, state, params, delta=False)
        return held.params(), state

    def _step(self, grads: Any, state: Any, params: Any, delta: bool) -> tuple[Held, Any]:
        like = grads if params is None else params
        form, leaves = Form.of(like)
        given = _gradients(form, grads)
        state, kept = self.states.read(form, leaves, params, state)
        held = Held(form, leaves, kept, self._made.spelling.slots, known=params is not None)
        decays = self._forms.decays(form, like)
        types = [
            self._ways.types(leaf, given.get(k), held.slots_of(k), decays[k])
            for k, leaf in enumerate(leaves)
        ]
        ways = self._ways.of(form, types, known=params is not None)
        function, _, groups = self._forms.prepared(form, decays, [way.dtype for way in ways])
        places = {int(leaf.name): n for n, leaf in enumerate(function.stepper.leaves)}
        tasks = [
            self._task(task, ways[int(task.leaf.name)], held, delta)
            for task in function.tasks({n: given[k] for k, n in places.items() if k in given})
        ]
        at = [self._hypers(group, kept) for group in groups]
        if delta:
            found = function.values(tasks, held.read, kept.count, values=at)
        else:
            required = self._made.engine == "native"
            found = values(function, tasks, held.read, kept.count, at, required)
        held.write(tasks, found.stores)
        self._own_steps(held, leaves, given, kept, decays, ways, known=params is not None)
        counts = kept.advanced()
        if found.blocked is not None:
            old = kept.counts
            counts = {k: jnp.where(found.blocked > 0, old[k], new) for k, new in counts.items()}
        statistics = jnp.asarray(found.sums) if len(found.sums) else kept.statistics
        return held, written(state, held.kept(counts, statistics))

    def _task(self, task: Task, way: Way, held: Held, delta: bool) -> Task:
        """A task with what is said of the dtypes of its results."""
        recipe = replace(task.recipe, delta=delta and not task.recipe.master)
        dtypes = {"update": way.new.update} if recipe.delta else {}
        old = held.slots_of(int(task.leaf.name))
        for slot, called in self._made.spelling.slots.items():
            new = way.new.slots.get(called)
            if new is not None and called in old and old[called].dtype.name != new:
                dtypes[slot] = new
        return replace(task, recipe=recipe, dtypes=dtypes)

    def _hypers(self, group: HyperGroup, kept: Kept) -> dict[str, Any]:
        """Hyperparameters in a step; each schedule goes by its own count where optax has one. What
        it gives is an array, which is never off."""
        counted = {name: owner for owner, name in self._made.dialect.schedule_counts.items()}

        def count(name: str) -> Any:
            return kept.counts.get(counted.get(name, ""), kept.count)

        def read(name: str, value: Any) -> Any:
            return jnp.asarray(value(count(name))) if callable(value) else value

        found = {name: read(name, value) for name, value in group.values.items()}
        return {**found, "lr": found["lr"] * read("lr", group.lr_ratio)}

    def _own_steps(
        self,
        held: Held,
        leaves: list[Any],
        given: Mapping[int, Any],
        kept: Kept,
        decays: Sequence[bool],
        ways: Sequence[Way],
        known: bool,
    ) -> None:
        """The steps that optax takes."""
        places = [k for k in given if ways[k].dtype is None]
        if not places:
            return
        own = self._made.own
        assert own is not None
        params = [leaves[k] for k in places]
        before = [held.slots_of(k) for k in places]
        slots = {name: [arrays[name] for arrays in before] for name in own.slots}
        updates, after = own.step(
            [given[k] for k in places],
            params,
            Kept(slots, kept.counts),
            [decays[k] for k in places],
            known,
        )
        new: Any = optax.apply_updates(params, updates)
        for n, k in enumerate(places):
            held.take(k, new[n], updates[n], {name: arrays[n] for name, arrays in after.items()})

    def report(self, state: Any) -> Report | None:
        """What the last step measured."""
        if not isinstance(state, State) or state.statistics is None:
            return None
        sums: Any = np.reshape(np.asarray(state.statistics), (-1, len(SUMS)))
        return Report.of(self._forms.titles, sums, int(state.count), self._made.options.nonfinite)

    def plan(self, params: Any) -> Plan:
        """What a step will do."""
        form, leaves = Form.of(params)
        decays, ways = self._forms.decays(form, params), self._ways.of(form)
        function, _, groups = self._forms.prepared(form, decays, [way.dtype for way in ways])
        stepper = function.stepper
        plan = stepper.plan(tuple(leaf.array.dtype.name for leaf in stepper.leaves))
        entries = {int(entry.name): entry for entry in plan.entries}
        entries |= {k: self._own_entry(leaves[k]) for k, w in enumerate(ways) if w.dtype is None}
        named = [replace(entries[k], name=name) for k, name in enumerate(form.names)]
        return Plan(named, {group.name: group.shown for group in groups}, plan.threads)

    def _own_entry(self, leaf: Any) -> PlanEntry:
        """What the plan says of a parameter that optax steps."""
        own = self._made.own
        assert own is not None
        kept = own.read(jax.eval_shape(own.listed([True]).init, [leaf]))
        slots = {name: arrays[0] for name, arrays in kept.slots.items()}
        size = sum(a.dtype.itemsize * a.size for a in slots.values())
        moved = 2 * size + 3 * leaf.dtype.itemsize * math.prod(leaf.shape)
        shapes = {name: (a.shape, a.dtype.name) for name, a in slots.items()}
        title, kernel = "(default)", f"optax.{own.name}"
        return PlanEntry(
            "", leaf.shape, leaf.dtype.name, title, shapes, size, moved, kernel, staged=False
        )


def _gradients(form: Form, grads: Any) -> dict[int, Any]:
    """The gradients by the place of their parameter; those that are None are left out."""
    leaves = form.leaves(grads, "the gradients")
    found = {k: as_array(g) for k, g in enumerate(leaves) if g is not None}
    for k, gradient in found.items():
        if gradient.shape != form.shapes[k]:
            raise GradientError(
                f"the gradient of {form.names[k]!r} has shape {gradient.shape}, and the parameter "
                f"{form.shapes[k]}"
            )
    return found
