"""The arrays of one step: what is read, and what comes in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from isostep.engines.leaf import Leaf
from isostep.errors import HyperparameterError
from isostep.functional import Task
from isostep.jax.layout import Kept
from isostep.jax.trees import Form


class Held:
    """The arrays of one step.

    Args:
        form: of the parameters.
        leaves: the parameters, or what stands for them if they are not known.
        kept: the state.
        called: the dialect's names of slots.
        known: whether the parameters are known.
    """

    def __init__(
        self, form: Form, leaves: list[Any], kept: Kept, called: Mapping[str, str], known: bool
    ) -> None:
        self._form, self._called, self._known = form, called, known
        self._old = {"model": list(leaves)}
        for name, tree in kept.slots.items():
            self._old[name] = form.leaves(tree, f"the state's {name}")
        for name, tree in (("average", kept.average), ("master", kept.master)):
            self._old[name] = [None] * len(leaves)
            if tree is not None:
                self._old[name] = form.leaves(tree, f"the state's {name}")
        self._slots = list(kept.slots)
        self._kept = {"average": kept.average is not None, "master": kept.master is not None}
        self._new = {name: list(arrays) for name, arrays in self._old.items()}
        self._updates: list[Any] = [None] * len(leaves)
        self._stepped: set[int] = set()

    def _place_of(self, leaf: Leaf, name: str) -> tuple[str, int]:
        place = int(leaf.name)
        if name == "param":
            name = "model" if self._old["master"][place] is None else "master"
        return self._called.get(name, name), place

    def slots_of(self, place: int) -> dict[str, Any]:
        """The slots of a parameter before the step, by the dialect's names."""
        arrays = {name: self._old[name][place] for name in self._slots}
        return {name: array for name, array in arrays.items() if array is not None}

    def read(self, leaf: Leaf, name: str) -> Any:
        """An array before the step; nothing is added to a parameter that stays."""
        if name == "update":
            return 0.0
        if name in ("param", "model") and not self._known:
            raise ValueError(
                "update() needs the parameters for this: optimizer.update(grads, state, params)"
            )
        called, place = self._place_of(leaf, name)
        found = self._old.get(called, [None] * len(self._updates))[place]
        if found is None:
            raise HyperparameterError(
                f"the state has no {called!r} of {self._form.names[place]!r}: it was made by "
                f"another optimizer, or for other parameters"
            )
        return found

    def write(self, tasks: Sequence[Task], stores: Sequence[Any]) -> None:
        """Take what a step computed."""
        values = iter(stores)
        for task in tasks:
            place = int(task.leaf.name)
            for name in task.stores:
                if name == "update":
                    self._updates[place] = next(values)
                else:
                    called, place = self._place_of(task.leaf, name)
                    self._new[called][place] = next(values)
            self._stepped.add(place)

    def take(self, place: int, param: Any, update: Any, slots: Mapping[str, Any]) -> None:
        """Take a step of one parameter."""
        self._new["model"][place], self._updates[place] = param, update
        for name, array in slots.items():
            self._new[name][place] = array

    def params(self) -> Any:
        """The new parameters."""
        return self._form.tree_of(self._new["model"])

    def updates(self) -> Any:
        """What is to be added to the parameters; None where there is no gradient."""
        for k in self._stepped:
            if self._old["master"][k] is not None:
                # In float32, so that the sum is the copy rounded once.
                new, old = (arrays["model"][k] for arrays in (self._new, self._old))
                self._updates[k] = new.astype(jnp.float32) - old.astype(jnp.float32)
        return self._form.tree_of(self._updates)

    def kept(self, counts: dict[str, Any], statistics: Any) -> Kept:
        """The new state."""
        slots = {name: self._form.tree_of(self._new[name]) for name in self._slots}
        average, master = (self._extra(name) for name in ("average", "master"))
        return Kept(slots, counts, average, master, statistics)

    def _extra(self, name: str) -> Any:
        return self._form.tree_of(self._new[name]) if self._kept[name] else None
