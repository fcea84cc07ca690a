"""The states of an optimizer: the first one, and those of optax that it goes on with."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from isostep.errors import HyperparameterError
from isostep.jax.forms import Forms
from isostep.jax.layout import Kept, State, owners, read, written
from isostep.jax.made import Made
from isostep.jax.trees import Form, full, on_mesh_of, without_axis
from isostep.jax.ways import Ways
from isostep.report import SUMS


class States:
    """The states of an optimizer.

    Args:
        made: what it is made of.
        forms, ways: what it decides.
    """

    def __init__(self, made: Made, forms: Forms, ways: Ways) -> None:
        self._made, self._forms, self._ways = made, forms, ways

    def init(self, params: Any) -> Any:
        """The state before the first step."""
        form, leaves = Form.of(params)
        if self._made.keeps_more or self._made.own is None:
            return self._first(form, leaves, params)
        state = self._made.own.transformation.init(form.tree_of(leaves))
        return self._laid_out(form, leaves, state)

    def _laid_out(self, form: Form, leaves: list[Any], state: Any) -> Any:
        """A first state on the meshes of its parameters: factors are sharded as these, and what
        stands for a slot that is not kept is on every device. Whole slots are there already."""
        own, rule = self._made.own, self._made.rule
        assert own is not None
        factors = {self._made.called(s.name): s.per for s in rule.slots if s.per != "element"}
        axes = [self._factored_axes(shape) for shape in form.shapes]
        if not factors:
            return state
        kept = own.read(state)
        for name, tree in kept.slots.items():
            arrays = form.leaves(tree, name)
            for place, (leaf, pair) in enumerate(zip(leaves, axes, strict=True)):
                if pair is not None and name in factors:
                    gone = pair[1] if factors[name] == "row" else pair[0]
                    arrays[place] = without_axis(arrays[place], leaf, gone)
                elif arrays[place].shape != leaf.shape:
                    arrays[place] = on_mesh_of(leaf, arrays[place])
            kept.slots[name] = form.tree_of(arrays)
        return written(state, kept)

    def _factored_axes(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        return self._made.rule.factored_axes(shape, SimpleNamespace(**self._made.values))

    def _first(self, form: Form, leaves: list[Any], params: Any) -> State:
        """The first state of those that keep more than optax."""
        decays, ways = self._forms.decays(form, params), self._ways.of(form)
        prepared = self._forms.prepared(form, decays, [way.dtype for way in ways])
        stepper = prepared.function.stepper
        kept: dict[str, list[Any]] = {
            name: [on_mesh_of(leaf, jnp.zeros(1, leaf.dtype)) for leaf in leaves]
            for name in self._slots()
        }
        for leaf in stepper.leaves:
            place = int(leaf.name)
            dtypes = {n: a.dtype for n, a in stepper.kept(leaf).items()}
            for name, (gone, initial) in prepared.first[place].items():
                like, dtype = leaves[place], dtypes[name]
                if name in ("average", "master"):
                    array = _copy(like, dtype, form.names[place])
                else:
                    shape = tuple(n for axis, n in enumerate(like.shape) if axis != gone)
                    value: Any = initial(0) if callable(initial) else initial
                    array = full(like, shape, gone, dtype, value)
                kept.setdefault(name, [None] * len(leaves))[place] = array
        trees = {name: form.tree_of(arrays) for name, arrays in kept.items()}
        for name, wanted in (
            ("average", self._made.options.ema is not None),
            ("master", self._made.options.master_weights),
        ):
            trees.setdefault(name, form.tree_of([None] * len(leaves)) if wanted else None)
        sums = len(stepper.groups) * len(SUMS)
        return State(
            count=jnp.zeros((), jnp.int32),
            slots={self._made.called(name): trees[name] for name in self._slots()},
            average=trees["average"],
            master=trees["master"],
            statistics=jnp.zeros(sums, jnp.float32) if self._made.options.report else None,
        )

    def _slots(self) -> list[str]:
        """The slots that parameters of any group and shape have, so that a state's structure does
        not depend on shapes."""
        made = self._made
        names: set[str] = set()
        for given in (made.values, *(own for _, own, _ in made.groups)):
            switches = made.rule.switches(SimpleNamespace(**given))
            for factored in (False, True):
                o = SimpleNamespace(**{**switches, "factored": factored})
                names |= {slot.name for slot in made.rule.active_slots(o)}
        return [slot.name for slot in made.rule.slots if slot.name in names]

    def read(self, form: Form, leaves: list[Any], params: Any, state: Any) -> tuple[Any, Kept]:
        """A state in the layout that steps go on with, and what it has.

        Raises:
            HyperparameterError: it is another optimizer's.
        """
        own, called = self._made.own, set(self._made.spelling.slots.values())
        if isinstance(state, State):
            return state, read(state, called)
        if own is None:
            raise HyperparameterError(
                f"the state is no isostep.jax.State but a {type(state).__name__}: an optimizer "
                f"with dialect={self._made.dialect.name!r}, or with a schedule where optax takes "
                f"none, begins with optimizer.init(params)"
            )
        kept = own.read(state)
        if owners(state) != own.states or kept.slots.keys() != set(own.slots):
            raise HyperparameterError(
                f"the state is {', '.join(owners(state)) or 'empty'}, and optax.{own.name} with "
                f"these arguments has {', '.join(own.states)}: begin with optimizer.init(params)"
            )
        if not self._made.keeps_more:
            return state, kept
        first = self._first(form, leaves, params)
        begun = replace(
            read(first, called), slots={**first.slots, **kept.slots}, counts={"": kept.count}
        )
        return written(first, begun), begun

    def from_optax(self, state: Any, params: Any) -> Any:
        """A state of this optimizer that goes on where one of optax is."""
        form, leaves = Form.of(params)
        return self.read(form, leaves, params, state)[0]

    def to_optax(self, state: Any, params: Any) -> Any:
        """A state of optax that goes on where one of this optimizer is."""
        own = self._made.own
        if own is None:
            raise HyperparameterError(
                f"optax has no state for dialect={self._made.dialect.name!r}, or for a schedule "
                f"where it takes none"
            )
        if not isinstance(state, State):
            return state
        shaped = jax.eval_shape(own.transformation.init, params)
        kept = own.read(shaped)
        counts = {owner: jnp.array(state.count) for owner in kept.counts}  # each may be donated
        return written(shaped, Kept({name: state.slots[name] for name in kept.slots}, counts))


def _copy(like: Any, dtype: Any, name: str) -> Any:
    """A copy of a parameter; both may be donated."""
    if isinstance(like, jax.ShapeDtypeStruct):
        raise HyperparameterError(
            f"the state begins with a copy of {name!r}, of which only the shape is known: use "
            f"jax.eval_shape(optimizer.init, params)"
        )
    return jnp.array(like, dtype, copy=True)
