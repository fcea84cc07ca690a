"""The `step` of each parameter: a tensor of its own in `optimizer.state`, as torch has it.

What stands in these tensors is how many steps there were, whoever has written it; so they are read
before each step and written after it, all in one call of machine code. Beyond 2^24 a float32 does
not hold every count: as long as nobody else writes to it, the exact one is known here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from isostep.engines.objects import Look
from isostep.errors import StateError
from isostep.torch.own_step import odd
from isostep.torch.tensors import oddity

ITERATION, SKIPPED = "isostep_iteration", "isostep_skipped"
"""Under these names a saved group has the optimizer's own counts."""

MOST = 2**63 - 2  # an int64 that can be counted up

# In one call: float32, float64 and int64, each read and written where it lies.
_KINDS = {torch.float32: 0, torch.float64: 1, torch.int64: 2}
_SOURCE = """
from isostep.compile.intrinsics import float32_at, float64_at, int64_at, narrow, widen


def read(low, high, context):
    w = int64_at(context)
    places, kinds, known, now = int64_at(w[0]), int64_at(w[1]), float64_at(w[2]), float64_at(w[3])
    edits = int64_at(w[6])
    for k in range(low, high):
        if kinds[k] == 0:
            now[k] = widen(float32_at(places[k])[0])
        elif kinds[k] == 1:
            now[k] = float64_at(places[k])[0]
        else:
            now[k] = float(int64_at(places[k])[0])
        if now[k] != known[k]:
            edits[0] += 1


def write(low, high, context):
    w = int64_at(context)
    places, kinds, known = int64_at(w[0]), int64_at(w[1]), float64_at(w[2])
    steps, following = int64_at(w[4]), int64_at(w[5])
    for k in range(low, high):
        if following[k] != steps[k]:
            value = float(following[k])
            if kinds[k] == 0:
                value = widen(narrow(value))
                float32_at(places[k])[0] = narrow(value)
            elif kinds[k] == 1:
                float64_at(places[k])[0] = value
            else:
                int64_at(places[k])[0] = following[k]
            known[k] = value
            steps[k] = following[k]
"""


class StepCounts:
    """The `step` tensors of some parameters: at first of none; see `plus`.

    Args:
        tensors: for each its tensor, as `find` gives it.
        names: of the parameters, for errors.

    Attributes:
        steps: the counts, as of the last `read` or `write`.
    """

    def __init__(self, tensors: Sequence[torch.Tensor] = (), names: Sequence[str] = ()) -> None:
        self._tensors, self._names = tensors, names
        kinds = list(map(_kind, tensors))
        self._by_torch = [k for k, kind in enumerate(kinds) if kind is None]
        # `known`: what stands in memory if nobody else writes there, rounded as it is there.
        count = len(tensors)
        self._known, self._now = np.full(count, math.nan), np.zeros(count)
        self.steps, self._next = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        self._edits = np.zeros(1, dtype=np.int64)
        places = [
            self._now[k:].ctypes.data if kinds[k] is None else tensor.data_ptr()
            for k, tensor in enumerate(tensors)
        ]
        tables = (
            np.array(places, dtype=np.int64),
            np.array([1 if kind is None else kind for kind in kinds], dtype=np.int64),
            self._known,
            self._now,
            self.steps,
            self._next,
            self._edits,
        )
        words = [table.ctypes.data for table in tables]
        self._read = Look(_SOURCE, "read", words, count, tables)
        self._write = Look(_SOURCE, "write", words, count, tables)

    def plus(self, tensors: Sequence[torch.Tensor], names: Sequence[str]) -> StepCounts:
        """These and others.

        Args:
            tensors: for each of the others its tensor.
            names: of their parameters.

        Raises:
            StateError: a count is no whole number, or out of range.
        """
        more = StepCounts([*self._tensors, *tensors], [*self._names, *names])
        for mine, its in ((self._known, more._known), (self.steps, more.steps)):
            its[: len(mine)] = mine
        more.read()
        return more

    def read(self) -> bool:
        """Take over what others have written.

        Returns:
            Whether there was anything.

        Raises:
            StateError: a count is no whole number, or out of range.
        """
        for k in self._by_torch:
            self._now[k] = float(self._tensors[k])
        self._edits[0] = 0
        self._read.call()
        if not self._edits[0]:
            return False
        edited = np.flatnonzero(self._now != self._known).tolist()
        counts = [checked(float(self._now[k]), f"parameter {self._names[k]!r}") for k in edited]
        self.steps[edited] = counts
        self._known[edited] = self._now[edited]
        return True

    def write(self, steps: NDArray[np.int64]) -> None:
        """Bring the tensors up to date; doing it twice does no harm."""
        self._next[:] = steps
        for k in self._by_torch:
            with torch.no_grad():
                self._tensors[k].fill_(int(steps[k]))
        self._write.call()


def find(kept: Mapping[str, Any], param: torch.Tensor, name: str) -> torch.Tensor:
    """The tensor that counts the steps of a parameter: that in its state, or a new one.

    Args:
        kept: the state of the parameter.
        param: the parameter.
        name: its name.

    Raises:
        NotOurs: what stands there is no number that can be counted up in place.
    """
    found = kept.get("step")
    if found is None or (isinstance(found, torch.Tensor) and found.is_meta and not param.is_meta):
        wide = torch.get_default_dtype() == torch.float64  # as torch.optim has it
        dtype = torch.float64 if wide else torch.float32
        return torch.zeros((), dtype=dtype, device="cpu")
    what = f"the step of parameter {name!r}"
    if not isinstance(found, torch.Tensor):
        raise odd(what, f"the {type(found).__name__} {found!r}")
    why = oddity(found)
    if not why and (found.numel() != 1 or found.dtype not in (*_KINDS, torch.int32)):
        why = f"a tensor of {found.dtype} with {found.numel()} elements"
    if not why and found.is_meta:
        why = "a meta tensor"
    if why:
        raise odd(what, why)
    return found


def checked(value: Any, whose: str) -> int:
    """A number of steps, as an int.

    Args:
        value: the number, or a tensor with one element.
        whose: the parameter or optimizer, with its name.

    Raises:
        StateError: it is no whole number in [0, 2^63 - 2].
    """
    try:
        number = value.item() if isinstance(value, torch.Tensor) else value
        count = int(number)
        if count == number and 0 <= count <= MOST:
            return count
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = value
    raise StateError(
        f"the step count of {whose} is {number!r}: it must be a whole number in [0, 2^63 - 2]; "
        f"set it to the number of steps done"
    )


def check_counts(saved: Mapping[str, Any], keeps_step: bool) -> None:
    """Refuse a saved state with a count that no step can go on from.

    Args:
        saved: the state, as torch.optim has it.
        keeps_step: whether torch's class keeps a `step` for each parameter.

    Raises:
        StateError: there is one.
    """
    for group in saved["param_groups"]:
        for name in (ITERATION, SKIPPED):
            checked(group.get(name, 0), f"the optimizer ({name})")
    for key, kept in saved["state"].items():
        if keeps_step and isinstance(kept, Mapping) and "step" in kept:
            steps_in(kept, f"entry {key!r} of the state")


def steps_in(kept: Any, whose: str = "a parameter") -> int:
    """The steps that the state of a parameter counts; 0 where it does not say."""
    step = kept.get("step", 0) if isinstance(kept, Mapping) else 0
    nothing = isinstance(step, torch.Tensor) and step.is_meta
    return 0 if nothing else checked(step, whose)


def _kind(tensor: torch.Tensor) -> int | None:
    """How machine code reads a tensor; None: torch does."""
    on_cpu = tensor.device.type == "cpu" and tensor.layout is torch.strided
    return _KINDS.get(tensor.dtype) if on_cpu else None
