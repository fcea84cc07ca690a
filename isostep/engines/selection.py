"""Which cohorts a step runs.

Cohorts and their tables are built once, for all parameters that an optimizer has taken in. A step
takes from them the tensors that have a gradient: a set of gradients that was not seen before, as
experts chosen at random have in every step, builds nothing but shorter tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isostep import flushing
from isostep.compile.arrays import Array, name_of
from isostep.compile.layout import Layout
from isostep.compile.trace import Matrices
from isostep.engines.cohort import Cohort, Runner
from isostep.engines.leaf import Leaf
from isostep.recipe import Recipe
from isostep.tracing import trace

Places = NDArray[np.intp]
_NONE = -1  # the kind of a parameter that is not stepped
_IDLE = "float32"  # stands for the dtype of a gradient where there is none
_RECENT = 8  # sets of gradients that are kept; those that never come again must not pile up


@dataclass(frozen=True)
class Kind:
    """What decides which parameters share a cohort, together with the dtype of their gradients.

    Args:
        recipe: what is done.
        matrices: how its graph sees them.
        arrays: the arrays of each, without the gradient.
        layout: how elements are walked.
    """

    recipe: Recipe
    matrices: Matrices
    arrays: tuple[Array, ...]
    layout: Layout

    def cohort(self, leaves: Sequence[Leaf], grad_dtype: str, members: Places) -> Cohort:
        """The cohort of some parameters of this kind."""
        idle = self.recipe.idle
        return Cohort(
            trace(self.recipe, matrices=self.matrices),
            [Array("grad", grad_dtype), *self.arrays],
            self.layout,
            [(1, 1, leaf.size) if idle else leaf.shape3 for leaf in leaves],
            members,
            title=self.recipe.rule.name,
            guards=flushing.guards(self.recipe),
        )


def kind_of(leaf: Leaf, recipe: Recipe) -> Kind:
    """The kind of a parameter that is stepped by a recipe."""
    arrays = tuple(Array(name, name_of(a.dtype)) for name, a in leaf.arrays.items())
    if recipe.idle:
        return Kind(recipe, "plain", arrays, "flat")
    return Kind(recipe, leaf.matrices, arrays, leaf.layout)


@dataclass
class Selection:
    """The cohorts for one set of gradients (which are there, and in which dtypes).

    Args:
        runners: those of the parameters with a gradient.
        idle: those of the others, where the dialect averages them as well.
        counted: for each parameter 1 if it has a gradient, else 0.
        staged: parameters among them that are copied in before a step, and back after it.
    """

    runners: list[Runner]
    idle: list[Runner]
    counted: NDArray[np.int64]
    staged: list[Leaf]


class Cohorts:
    """The cohorts of the parameters of an optimizer.

    Args:
        kinds: the kinds of a parameter with a gradient and of one without; None: not stepped.
        make: makes a cohort of some parameters ready.
        prepare: gets the cohorts that `make` will get next, to do at once what takes long.
    """

    def __init__(
        self,
        kinds: Callable[[Leaf], tuple[Kind | None, Kind | None]],
        make: Callable[[Cohort, list[Leaf]], Runner],
        prepare: Callable[[list[Cohort]], None] = lambda cohorts: None,
    ) -> None:
        self._kinds_of, self._make, self._prepare = kinds, make, prepare
        self._leaves: list[Leaf] = []
        self._numbers: dict[Kind | None, int] = {None: _NONE}
        self._kinds: list[tuple[int, int]] = []
        self._known: list[tuple[int, Kind]] = []
        self._stepped = self._idle = np.zeros(0, dtype=np.intp)
        self._whole: dict[tuple[int, str], Runner] = {}
        self.recent: dict[tuple[str | None, ...], Selection] = {}
        """What was selected, for sets of gradients that come again."""

    def select(self, leaves: list[Leaf], grad_dtypes: tuple[str | None, ...]) -> Selection:
        """The cohorts of those that are stepped.

        Args:
            leaves: all parameters; none but the last may be new since the call before.
            grad_dtypes: the dtype of each gradient, None where there is none.
        """
        if leaves is not self._leaves:
            self._take(leaves)
        found = self.recent.get(grad_dtypes)
        if found is None:
            found = self._select(grad_dtypes, own=False)
            if len(self.recent) >= _RECENT:
                self.recent.clear()
            self.recent[grad_dtypes] = found
        return found

    def select_own(self, leaves: list[Leaf], grad_dtypes: tuple[str | None, ...]) -> Selection:
        """As `select`, with tables that no other selection has."""
        if leaves is not self._leaves:
            self._take(leaves)
        return self._select(grad_dtypes, own=True)

    def _select(self, grad_dtypes: tuple[str | None, ...], own: bool) -> Selection:
        leaves = self._leaves
        names = list(dict.fromkeys(grad_dtypes))
        number = {name: k for k, name in enumerate(names)}
        dtypes = np.fromiter(map(number.__getitem__, grad_dtypes), np.intp, len(grad_dtypes))
        absent = dtypes == number.get(None, _NONE)
        kinds = np.where(absent, self._idle, self._stepped)
        mixed = np.where(kinds == _NONE, _NONE, kinds * len(names) + dtypes)
        found: list[tuple[int, int, Runner]] = []
        present = [divmod(value, len(names)) for value in np.unique(mixed).tolist() if value >= 0]
        self._make_all([(kind, names[dtype] or _IDLE) for kind, dtype in present])
        for kind, dtype in present:
            members = np.flatnonzero(mixed == kind * len(names) + dtype)
            runner = self._some(kind, names[dtype] or _IDLE, members, own)
            found.append((self._known[kind][0], int(members[0]), runner))
        runners = [runner for _, _, runner in sorted(found, key=lambda entry: entry[:2])]
        idle = [r for r in runners if absent[r.cohort.members[0]]]
        staged = [leaf for leaf, k in zip(leaves, mixed, strict=True) if leaf.staged and k != _NONE]
        active = [r for r in runners if not absent[r.cohort.members[0]]]
        return Selection(active, idle, (~absent).astype(np.int64), staged)

    def _take(self, leaves: list[Leaf]) -> None:
        """Follow parameters that were taken in."""
        self._kinds += map(self._numbered, leaves[len(self._kinds) :])
        self._whole, self.recent = {}, {}
        seen: dict[tuple[int, int], int] = {}

        def among(kinds: list[int]) -> Places:
            """The place of each in `seen`, by layer and kind."""
            found = [_NONE] * len(leaves)
            for k, (leaf, kind) in enumerate(zip(leaves, kinds, strict=True)):
                if kind != _NONE:
                    found[k] = seen.setdefault((leaf.layer, kind), len(seen))
            return np.array(found, dtype=np.intp)

        self._stepped, self._idle = (among([pair[k] for pair in self._kinds]) for k in (0, 1))
        kinds = {number: kind for kind, number in self._numbers.items() if kind is not None}
        self._known = [(layer, kinds[number]) for layer, number in seen]
        self._leaves = leaves

    def _numbered(self, leaf: Leaf) -> tuple[int, int]:
        """The kinds of a parameter, each by a number: to compare them takes long."""
        if not leaf.size:
            return _NONE, _NONE
        stepped, idle = self._kinds_of(leaf)
        numbers = self._numbers
        return numbers.setdefault(stepped, len(numbers)), numbers.setdefault(idle, len(numbers))

    def _make_all(self, keys: list[tuple[int, str]]) -> None:
        """Runners of all parameters of some kinds, each with the dtype of their gradients."""
        new = {key: self._cohort(*key) for key in keys if key not in self._whole}
        if len(new) > 1:
            self._prepare([cohort for cohort, _ in new.values()])
        for key, (cohort, leaves) in new.items():
            self._whole[key] = self._make(cohort, leaves)

    def _cohort(self, kind: int, grad_dtype: str) -> tuple[Cohort, list[Leaf]]:
        of = self._known[kind][1]
        everyone = np.flatnonzero((self._idle if of.recipe.idle else self._stepped) == kind)
        leaves = [self._leaves[k] for k in everyone]
        return of.cohort(leaves, grad_dtype, everyone), leaves

    def _some(self, kind: int, grad_dtype: str, members: Places, own: bool) -> Runner:
        """A runner of some of the parameters of a kind."""
        whole = self._whole[kind, grad_dtype]
        everyone = whole.cohort.members
        if len(members) == len(everyone) and not own:
            return whole
        return whole.of(np.searchsorted(everyone, members))
