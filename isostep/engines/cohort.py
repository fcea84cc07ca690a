"""What engines work on: tensors that share one kernel, and the passes that step them together.

A cohort is all tensors with the same recipe, the same dtypes and the same layout. `execute` takes
several cohorts through their passes in step: after each pass the sums are combined over chunks,
tensors and cohorts, and the scalars of the next pass are computed, in float64 on the host. Sums
over tensors are exact before rounding, so their order does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from isostep.commit import Progress
from isostep.compile.arrays import Array, compute_dtype
from isostep.compile.layout import Layout, Shape3
from isostep.compile.schedule import Schedule
from isostep.compile.trace import Symbol
from isostep.recipe import NONFINITE_SUM
from isostep.rules.base import Guards

Floats = NDArray[np.float64]
Totals = dict[tuple[str, int], float]  # by name, and which of that name


@dataclass
class Cohort:
    """Tensors that share one kernel.

    Args:
        schedule: the passes.
        arrays: the names and dtypes of each tensor's arrays, in the order of `tensors`' columns.
        layout: how elements are walked.
        shapes: each tensor as (batch, rows, columns).
        members: for each tensor its place in the optimizer.
        title: what the kernel does, for people.
        guards: what keeps it from feeling that denormal numbers are flushed; see `flushing`.

    Attributes:
        extents, sizes: the shapes as an array, and the number of elements of each tensor.
    """

    schedule: Schedule
    arrays: list[Array]
    layout: Layout
    shapes: list[Shape3]
    members: NDArray[np.intp]
    title: str
    guards: Guards | None = None
    extents: NDArray[np.int64] = field(init=False)
    sizes: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.extents = np.array(self.shapes, dtype=np.int64).reshape(-1, 3)
        self.sizes = self.extents.prod(axis=1).astype(np.float64)

    def of(self, places: NDArray[np.intp]) -> Cohort:
        """Some of the tensors, by their places."""
        shapes = [self.shapes[k] for k in places.tolist()]
        return replace(self, shapes=shapes, members=self.members[places])

    @property
    def compute_dtype(self) -> Literal["float32", "float64"]:
        """The dtype of the arithmetic: float64 for float64 parameters, float32 for all others."""
        return compute_dtype(self.arrays)

    def column(self, name: str) -> int:
        """The place of array `name` among `arrays`."""
        return next(k for k, a in enumerate(self.arrays) if a.name == name)


class Runner(Protocol):
    """A cohort made ready by an engine."""

    cohort: Cohort

    @property
    def engine(self) -> str:
        """The name of the engine that takes the next step."""
        ...

    @property
    def source(self) -> str:
        """The text of what runs."""
        ...

    def begin(self, coefficients: dict[str, Any]) -> None:
        """Take in the coefficients of a step."""
        ...

    def of(self, places: NDArray[np.intp]) -> Runner:
        """A runner of some of the tensors, by their places, over the same arrays."""
        ...

    def run(self, number: int, scalars: list[Any], progress: Progress) -> list[Floats]:
        """Run pass `number`, as far as that is not done, and return its sums per tensor, in the
        order of `tensor_sums`."""
        ...


class Ranks(Protocol):
    """The processes that step a model together, each its own part of the parameters."""

    def over_ranks(self, sums: list[float], progress: Progress) -> list[float] | None:
        """Add up sums over all processes. Each of them calls it once in a step.

        Args:
            sums: those of this process's part; as many in all processes, in the same order.
            progress: what of the step is done, this call among it.

        Returns:
            The totals, the same numbers in all processes; None if one of them takes no step.
        """
        ...


@dataclass(frozen=True)
class Shared:
    """Sums over all tensors that go over the tensors of other processes, too.

    A process takes part whichever tensors it has, and if it has none: what is added up does not
    depend on them.

    Args:
        names: the names of the sums, all due before the second pass.
        ranks: the processes.
    """

    names: list[str]
    ranks: Ranks

    def over_ranks(self, totals: Totals, progress: Progress) -> Totals | None:
        """The totals over all processes, from those of this one; None if there is no step."""
        keys = [(name, 0) for name in self.names]
        found = self.ranks.over_ranks([totals.get(key, 0.0) for key in keys], progress)
        return None if found is None else dict(zip(keys, found, strict=True))


_HOST: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "sqrt": np.sqrt,
    "abs": np.abs,
    "sign": np.sign,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "where": np.where,
    "gt": np.greater,
    "ge": np.greater_equal,
    "isfinite": lambda x: np.isfinite(x).astype(np.float64),
    "after": lambda x, decided: x,
}


# Infinities and NaN are part of what is computed. NumPy's error state belongs to a context, so that
# whatever is raised, the caller's own stays as it was.
_QUIET = Context()
_QUIET.run(np.seterr, all="ignore")


@dataclass
class Outcome:
    """What is known of a step when it has run, or was stopped.

    Args:
        blocked: the number of non-finite gradient elements that stopped it; 0 if it ran.
        statistics: for each cohort the sums per tensor by name.
        missed: whether another process takes no part in it, so that it was stopped.
    """

    blocked: int
    statistics: list[dict[str, Floats]]
    missed: bool = False

    @property
    def stopped(self) -> bool:
        """Whether nothing was written."""
        return self.missed or self.blocked > 0


class _Values:
    """The host's side of one cohort: values per tensor and per step, as they become known."""

    def __init__(self, cohort: Cohort, coefficients: dict[str, Any]) -> None:
        self.cohort, self.schedule = cohort, cohort.schedule
        self.known: dict[int, Any] = {n.index: n.value for n in self.schedule.constants}
        for node in self.schedule.inputs:
            self.known[node.index] = coefficients[node.name]

    def run(self, runner: Runner, number: int, progress: Progress) -> None:
        """Compute what pass `number` waits for, run it, and take in its sums."""
        known, step = self.known, self.schedule.passes[number]
        for node in self.schedule.host[number]:
            known[node.index] = _HOST[node.op](*[known[a.index] for a in node.args])
        sums = runner.run(number, [known[s.index] for s in step.scalars], progress)
        for node, total in zip(step.tensor_sums, sums, strict=True):
            known[node.index] = total / self.cohort.sizes if node.op == "mean" else total

    def statistics(self) -> dict[str, Floats]:
        """The sums that were asked for, as far as they are known."""
        found = self.schedule.statistics
        return {n: self.known[s.index] for n, s in found.items() if s.index in self.known}


def execute(
    runners: Sequence[Runner],
    coefficients: Sequence[dict[str, Any]],
    progress: Progress,
    shared: Shared | None = None,
) -> Outcome:
    """Take all cohorts through their passes.

    Args:
        runners: the cohorts.
        coefficients: for each cohort its coefficients by name, each an array over its tensors or a
            number.
        progress: what of it is done.
        shared: the sums that other processes have a share in.

    Returns:
        The outcome. If a non-finite gradient or another process stops the step, no array has been
        written.
    """
    return _QUIET.copy().run(_execute, runners, coefficients, progress, shared)


def _execute(
    runners: Sequence[Runner],
    coefficients: Sequence[dict[str, Any]],
    progress: Progress,
    shared: Shared | None,
) -> Outcome:
    values = [_Values(r.cohort, c) for r, c in zip(runners, coefficients, strict=True)]
    for runner, given in zip(runners, coefficients, strict=True):
        runner.begin(given)
    passes = max((len(v.schedule.passes) for v in values), default=0)
    for number in range(passes if shared is None else max(passes, 2)):
        stopped = _combine(values, number, progress, shared)
        if stopped is not None:
            return stopped
        for runner, value in zip(runners, values, strict=True):
            if number < len(value.schedule.passes):
                value.run(runner, number, progress)
    return Outcome(0, [v.statistics() for v in values])


def _combine(
    values: list[_Values], number: int, progress: Progress, shared: Shared | None
) -> Outcome | None:
    """Sums over all tensors that are due before pass `number`; the outcome if it stops there."""
    due = alike([v.schedule.step_sums for v in values], number)
    totals = {key: _total(values, same) for key, same in due.items()}
    if shared is not None and number == 1:
        over_all = shared.over_ranks(totals, progress)
        if over_all is None:
            return Outcome(0, [v.statistics() for v in values], missed=True)
        totals = over_all
    for key, same in due.items():
        for k, node in same:
            values[k].known[node.index] = totals[key]
    blocked = int(totals.get((NONFINITE_SUM, 0), 0))
    return Outcome(blocked, [v.statistics() for v in values]) if blocked else None


def _total(values: list[_Values], same: list[tuple[int, Symbol]]) -> float:
    terms = [values[k].known[node.args[0].index] for k, node in same]
    return _exact_sum([x for term in terms for x in term.tolist()])


def alike(
    sums: Sequence[list[list[Symbol]]], number: int
) -> dict[tuple[str, int], list[tuple[int, Symbol]]]:
    """The sums over tensors that are due before pass `number`, each with its nodes.

    Those of one name are one sum; of those without a name the n-th of each schedule.

    Args:
        sums: the `step_sums` of all schedules.

    Returns:
        For each sum, by its name and which of that name it is, the places of its schedules and its
        node in each.
    """
    found: dict[tuple[str, int], list[tuple[int, Symbol]]] = {}
    for k, of_passes in enumerate(sums):
        seen: list[str] = []
        for node in of_passes[number] if number < len(of_passes) else []:
            found.setdefault((node.name, seen.count(node.name)), []).append((k, node))
            seen.append(node.name)
    return found


def _exact_sum(terms: list[float]) -> float:
    try:
        return math.fsum(terms)
    except (ValueError, OverflowError):  # infinities of both signs, and sums beyond the largest
        return float(np.sum(terms))
