"""Tensors that share memory: torch steps them one after the other, and so must a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from isostep.engines.leaf import Leaf
from isostep.errors import ParameterError
from isostep.stepper import Stepper
from isostep.torch.own_step import odd
from isostep.torch.tensors import reach
from isostep.tracing import reads_ahead

Bounds = NDArray[np.int64]
"""Of shape (tensors, 2): the first address of each tensor, and that behind its last."""


def bounds(tensors: Sequence[torch.Tensor]) -> Bounds:
    """Where strided tensors begin and end."""
    found = [(low := t.data_ptr(), low + reach(t)) for t in tensors]
    return np.array(found, dtype=np.int64).reshape(-1, 2)


class Stretches:
    """Memory as stretches that do not touch, in order.

    Args:
        memory: that of strided tensors; what a strided one leaves out counts as its own.

    Attributes:
        lows, highs: the first address of each stretch, and that behind its last.
    """

    def __init__(self, memory: Bounds) -> None:
        some = memory[memory[:, 1] > memory[:, 0]]
        lows, highs = some[np.argsort(some[:, 0])].T
        reached = np.maximum.accumulate(highs)
        starts = np.ones(len(lows), dtype=bool)
        starts[1:] = lows[1:] > reached[:-1]
        self.lows = lows[starts]
        self.highs = reached[np.append(starts[1:], True)] if len(lows) else highs

    def meet(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor may share memory with one of these."""
        low, high = bounds([tensor])[0]
        first = int(np.searchsorted(self.highs, low, side="right"))
        return bool(high > low and first < len(self.lows) and self.lows[first] < high)


def check_apart(kept: Sequence[tuple[str, str]], of_kept: Bounds, of_params: Bounds) -> None:
    """Leave it to torch to step parameters whose state shares memory.

    Args:
        kept: the tensors of the state, by parameter and key.
        of_kept, of_params: where they lie, and the parameters.

    Raises:
        NotOurs: a tensor of the state shares memory with another, or with a parameter.
    """
    memory = np.concatenate([of_params, of_kept])
    number = np.arange(len(memory)) - len(of_params)  # of the state those from 0 on
    order = np.lexsort((memory[:, 1], memory[:, 0]))
    order = order[memory[order, 1] > memory[order, 0]]
    (lows, highs), number = memory[order].T, number[order]
    ends = np.maximum.accumulate(highs)[:-1]
    ends_of_state = np.maximum.accumulate(np.where(number >= 0, highs, 0))[:-1]
    meets = np.where(number[1:] >= 0, lows[1:] < ends, lows[1:] < ends_of_state)
    if meets.any():
        first = int(np.argmax(meets)) + 1
        before = np.where(number >= 0, highs, 0)[:first]
        place = number[first] if number[first] >= 0 else number[np.argmax(before)]
        name, key = kept[place]
        raise odd(f"the state {key!r} of parameter {name!r}", "memory that it shares")


def out_of_turn(stepper: Stepper, memory: Bounds) -> str:
    """Why a step of these is not one parameter's after another's, as far as they share memory.

    Kernels step them in layers, see `layers`, in which each pass is run for all before the next:
    no rule may look at a parameter in an earlier pass. Array code does not look where they lie.

    Returns:
        The reason, in words; empty where all is well.
    """
    tied = [leaf for leaf in stepper.leaves if leaf.layer]
    if stepper.engine == "native":
        wrong = any(map(reads_ahead, map(stepper.recipe, tied)))
    else:
        wrong = not _apart(memory[_upwards(memory)])
    return "memory that it shares with another" if wrong else ""


def layers(leaves: list[Leaf], places: list[int], memory: Bounds) -> None:
    """Put each leaf that overlaps earlier ones into a later layer than theirs.

    Args:
        leaves: the parameters.
        places: of each its place in the groups, which is when torch steps it.
        memory: where they lie.

    Raises:
        ParameterError: two overlap and one of them is stepped in a copy.
    """
    order = _upwards(memory)
    if _apart(memory[order]):
        return
    open_until: list[int] = []
    pairs: list[tuple[int, int]] = []
    for k in order.tolist():
        open_until = [j for j in open_until if memory[j, 1] > memory[k, 0]]
        pairs += [(k, j) if places[k] < places[j] else (j, k) for j in open_until]
        open_until.append(k)
    for first, second in sorted(pairs, key=lambda pair: [places[k] for k in pair]):
        _separate(leaves[first], leaves[second])


def _upwards(memory: Bounds) -> NDArray[np.intp]:
    """Those that have memory, by where it begins; a tensor on the meta device has none."""
    order = np.argsort(memory[:, 0])
    return order[(memory[order, 1] > memory[order, 0]) & (memory[order, 0] > 0)]


def _apart(memory: Bounds) -> bool:
    """Whether no two share memory, of tensors in the order of `_upwards`."""
    lows, highs = memory.T
    return bool((lows[1:] >= np.maximum.accumulate(highs)[:-1]).all())


def _separate(a: Leaf, b: Leaf) -> None:
    try:
        if not np.shares_memory(a.array, b.array, max_work=cast(Any, 100_000)):
            return
    except np.exceptions.TooHardError:
        pass  # as if they did
    if a.staged or b.staged:
        raise ParameterError(
            f"parameters {a.name!r} and {b.name!r} share memory and one is not contiguous: make "
            f"them one parameter, or copies of each other"
        )
    b.layer = max(b.layer, a.layer + 1)
