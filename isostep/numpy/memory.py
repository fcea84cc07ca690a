"""The memory that steps write: whether it is what it was, and what to do where it is not.

NumPy lets users resize an array, recast it, swap its strides or make it read-only, in place, while
an optimizer has it, and put another array under its name. Kernels write by raw address, so each
step looks first. An array that can still be stepped is followed to where it is; any other is
refused by name, and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isostep.engines.headers import Table, Watch
from isostep.engines.leaf import AnyArray, Leaf
from isostep.errors import ParameterError, StateError
from isostep.numpy.containers import Containers
from isostep.numpy.params import behaves, overlaps, owners
from isostep.stepper import Stepper

_DONE = "(nothing was changed)"


@dataclass
class Faults:
    """Why arrays cannot be stepped, by the place of their parameter.

    Args:
        params: those that have another shape or dtype, or no memory of their own.
        read_only: those that may be read.
        slots: those of whose kept arrays one has become another.
    """

    params: dict[int, str] = field(default_factory=dict[int, str])
    read_only: dict[int, str] = field(default_factory=dict[int, str])
    slots: dict[int, str] = field(default_factory=dict[int, str])


_NO_FAULTS = Faults()


class Memory:
    """The parameters of an optimizer and the arrays that it keeps for them.

    Args:
        stepper: whose they are.
        containers: what the parameters stand in.
    """

    def __init__(self, stepper: Stepper, containers: Containers) -> None:
        self._stepper, self._containers = stepper, containers
        # A step writes to these, and they are the user's to edit: `slots` gives views of them.
        self._kept = [
            (place, name, array)
            for place, leaf in enumerate(stepper.leaves)
            for name, array in stepper.kept(leaf).items()
        ]
        self._forms = [_form(array) for _, _, array in self._kept]
        self._faults = Faults()
        self._look(containers.entries())

    def _look(self, entries: dict[str, Any]) -> None:
        """Take everything as it is now as known.

        Args:
            entries: what stands under each name.
        """
        arrays = [leaf.array for leaf in self._stepper.leaves] + [a for _, _, a in self._kept]
        self.bounds = _bounds(arrays)
        """Where what a step writes to begins, in order, and how far all up to there reaches."""
        # What stands in a parameter's place and cannot be stepped may be made so that it can.
        arrays += [entry for entry in entries.values() if isinstance(entry, np.ndarray)]
        known = {id(a): a for array in arrays for a in (array, *owners(array))}
        self._watch = Watch(list(known.values()))
        self._containers.record(entries)  # at last: what an exception has stopped is done again

    def follow(self) -> None:
        """Have the stepper step the arrays that stand under the names of the parameters, where they
        are now, as far as they can be stepped."""
        if self._containers.same() and self._watch.same():
            return
        entries, leaves = self._containers.entries(), self._stepper.leaves
        replaced = _unfit(leaves, entries)
        for place, leaf in enumerate(leaves):
            if place not in replaced:
                leaf.array = entries[leaf.name]
        self._faults = self._found(replaced)
        lost = self._faults.params
        self._stepper.rebind(k for k in range(len(leaves)) if k not in lost)
        self._look(entries)

    def check_step(self, dtypes: Sequence[str | None]) -> None:
        """Refuse a step of what cannot be stepped.

        Args:
            dtypes: of the gradients; None where there is none.

        Raises:
            ParameterError, StateError: see `check_params` and `check_slots`.
        """
        if self._faults != _NO_FAULTS:
            idle = self._stepper.averages_idle
            places = [k for k, dtype in enumerate(dtypes) if idle or dtype is not None]
            self.check_params(places)
            self.check_slots(places)

    def check_params(self, places: Iterable[int], written: bool = True) -> None:
        """Refuse to use parameters that have become others.

        Args:
            places: which.
            written: whether they are written to.

        Raises:
            ParameterError: an array was resized, recast, reshaped or made read-only, or it shares
                memory, or has lost it.
        """
        lost, read_only = self._faults.params, self._faults.read_only if written else {}
        for place in places:
            if place in lost or place in read_only:
                raise ParameterError(lost.get(place) or read_only[place])

    def check_slots(self, places: Iterable[int]) -> None:
        """Refuse to use arrays that are kept and have become others.

        Args:
            places: the parameters that they are kept for.

        Raises:
            StateError: an array was resized, recast, reshaped or made read-only.
        """
        for place in places:
            if place in self._faults.slots:
                raise StateError(self._faults.slots[place])

    @property
    def unwritable(self) -> set[int]:
        """The places of parameters that cannot be written to."""
        return {*self._faults.params, *self._faults.read_only}

    def _found(self, replaced: dict[int, str]) -> Faults:
        """Look at everything.

        Args:
            replaced: why what stands in place of a parameter cannot be stepped.
        """
        faults, leaves = Faults(), self._stepper.leaves
        for place, leaf in enumerate(leaves):
            why = replaced.get(place) or _lost(leaf)
            if why:
                faults.params[place] = f"parameter {leaf.name!r} {why} {_DONE}"
            elif not leaf.array.flags.writeable:
                faults.read_only[place] = (
                    f"parameter {leaf.name!r} was made read-only: set its flags.writeable = True, "
                    f"or give None for its gradient {_DONE}"
                )
        for (place, name, array), form in zip(self._kept, self._forms, strict=True):
            if _form(array) != form:
                faults.slots[place] = (
                    f"{name} of {leaves[place].name!r} is kept as an array of {form[0]} {form[1]}, "
                    f"and was made {_told(array)}: make it as it was, or make a new optimizer "
                    f"{_DONE}"
                )
        self._find_overlaps(faults)
        return faults

    def _find_overlaps(self, faults: Faults) -> None:
        leaves = self._stepper.leaves
        named = {repr(leaf.name): leaf.array for k, leaf in enumerate(leaves)}
        named = {n: a for k, (n, a) in enumerate(named.items()) if k not in faults.params}
        place = {repr(leaf.name): k for k, leaf in enumerate(leaves)}
        for k, name, array in self._kept:
            if k not in faults.slots:
                key = f"{name} of {leaves[k].name!r}"
                named[key], place[key] = array, k
        for one, other in overlaps(named):
            for name in (one, other):
                what = (
                    f"{one} was made to overlap itself"
                    if one == other
                    else f"{one} and {other} were made to share memory"
                )
                faults.params.setdefault(place[name], f"{what}: give each its own {_DONE}")


def _bounds(arrays: Iterable[AnyArray]) -> tuple[Table, Table]:
    spans = sorted(np.lib.array_utils.byte_bounds(array) for array in arrays if array.size)
    firsts, ends = np.array(spans, dtype=np.int64).reshape(-1, 2).T
    return firsts, np.maximum.accumulate(ends)


def _form(array: AnyArray) -> tuple[Any, ...]:
    """What of an array that is kept must stay; where it lies may change."""
    return array.dtype.name, array.shape, array.strides, array.flags.writeable, array.base is None


def _told(array: AnyArray) -> str:
    return f"{'' if array.flags.writeable else 'read-only '}{array.dtype.name} {array.shape}"


def _unfit(leaves: Sequence[Leaf], entries: dict[str, Any]) -> dict[int, str]:
    """Why what stands under the name of a parameter is not one, in words, by its place."""
    found: dict[int, str] = {}
    for place, leaf in enumerate(leaves):
        if leaf.name not in entries:
            found[place] = (
                "was removed from the params that the optimizer was made of: put it back, give "
                "None for its gradient, or make a new optimizer"
            )
            continue
        entry = entries[leaf.name]
        if entry is leaf.array:
            continue  # or was made another in place, which is told of in other words
        now = _described(entry)
        if now != f"{leaf.dtype} {leaf.shape}":
            found[place] = (
                f"was an array of {leaf.dtype} {leaf.shape}, and was replaced by {now} in the "
                f"params: put an array of that dtype and shape there, or make a new optimizer"
            )
    return found


def _described(entry: Any) -> str:
    """What something is that stands in the place of a parameter."""
    if not isinstance(entry, np.ndarray) or behaves(entry):
        return f"a {type(entry).__name__}"
    return f"{entry.dtype} {entry.shape}"


def _lost(leaf: Leaf) -> str:
    """Why the array of a parameter is not the one that it was, in words; else nothing."""
    array = leaf.array
    if array.shape != leaf.shape or array.dtype != leaf.dtype:
        return (
            f"was an array of {leaf.dtype} {leaf.shape}, and was made {array.dtype} {array.shape} "
            f"in place: make it as it was, or make a new optimizer"
        )
    if not has_memory(array):
        return (
            "is a view of an array that was resized in place, and its memory is gone: make a new "
            "optimizer of the new array"
        )
    return ""


def has_memory(array: AnyArray) -> bool:
    """Whether an array lies within what each of its owners has."""
    if not array.size:
        return True
    low, high = np.lib.array_utils.byte_bounds(array)
    for owner in owners(array):
        first, last = np.lib.array_utils.byte_bounds(owner)
        if not owner.size or low < first or high > last:
            return False
    return True
