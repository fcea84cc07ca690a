"""The processes of a group that step one model, each its own part of the parameters.

What spans parameters is added up over all of them, by one small all-reduce in each step. A process
that cannot take its part says so there: else the others would wait for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from functools import partial
from typing import Any

import torch

from isostep import dialects
from isostep.commit import Progress


class ProcessRanks:
    """See `cohort.Ranks`.

    Args:
        group: the process group.
        device: where its backend has tensors.
        count: how many sums there are in a step; the same in all processes.
    """

    def __init__(self, group: Any, device: Any, count: int) -> None:
        self._group, self._count = group, count
        # No Python of torch's between the two calls of a step: see `Progress.once`.
        self._vector = partial(torch.tensor, dtype=torch.float64, device=device)
        self._met = True

    def over_ranks(self, sums: list[float], progress: Progress) -> list[float] | None:
        """Add up sums over all processes; None if one of them takes no step."""
        assert len(sums) == self._count
        vector = progress.once(self._vector, [0.0, *sums])
        work = progress.once(self._group.allreduce, [vector])
        self._met = True
        work.wait()
        missing, *totals = vector.tolist()
        return None if missing else totals

    @contextlib.contextmanager
    def step(self) -> Generator[None]:
        """A step: if it ends before the sums are added up, the other processes are told."""
        self._met = False
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to see
                self._tell()
            raise
        self._tell()

    def _tell(self) -> None:
        if not self._met:
            self._group.allreduce([self._vector([1.0] + [0.0] * self._count)]).wait()


def ranks_of(holder: Any, count: int) -> ProcessRanks | None:
    """The processes that step a model together, by the optimizer that spreads it over them.

    Args:
        holder: the optimizer.
        count: how many sums there are in a step.

    Returns:
        None if it is none of those that have every process step whole parameters, all at once.
    """
    for name in (cls.__name__ for cls in type(holder).__mro__):
        known = dialects.get("torch").part_groups.get(name)
        if known is not None and not getattr(holder, known.unless, False):
            return ProcessRanks(getattr(holder, known.group), getattr(holder, known.device), count)
    return None
