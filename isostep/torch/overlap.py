"""Tensors that share memory: torch steps them one after the other, and so must a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch

from isostep.engines.leaf import Leaf
from isostep.errors import ParameterError
from isostep.torch.own_step import odd
from isostep.torch.tensors import reach


class Stretches:
    """The memory of tensors as stretches that do not touch, in order.

    Args:
        tensors: strided tensors; what a strided one leaves out counts as its own.

    Attributes:
        lows, highs: the first address of each stretch, and that behind its last.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        lows: list[int] = []
        highs: list[int] = []
        for low, high in sorted(map(_bounds, tensors)):
            if highs and low <= highs[-1]:
                highs[-1] = max(highs[-1], high)
            elif high > low:
                lows.append(low)
                highs.append(high)
        self.lows = np.array(lows, dtype=np.int64)
        self.highs = np.array(highs, dtype=np.int64)

    def meet(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor may share memory with one of these."""
        low, high = _bounds(tensor)
        first = int(np.searchsorted(self.highs, low, side="right"))
        return high > low and first < len(self.lows) and bool(self.lows[first] < high)


def _bounds(tensor: torch.Tensor) -> tuple[int, int]:
    low = tensor.data_ptr()
    return low, low + reach(tensor)


def check_apart(kept: dict[tuple[str, str], torch.Tensor], params: Sequence[torch.Tensor]) -> None:
    """Leave it to torch to step parameters whose state shares memory.

    Args:
        kept: the tensors of the state, by parameter and key.
        params: the parameters.

    Raises:
        NotOurs: a tensor of the state shares memory with another, or with a parameter.
    """
    nobody = ("", "")
    places = [(*_bounds(t), nobody) for t in params]
    places += [(*_bounds(t), place) for place, t in kept.items()]
    end, last, end_of_state = 0, nobody, 0
    for low, high, place in sorted(places):
        if high > low and (low < end_of_state or (place != nobody and low < end)):
            name, key = place if place != nobody else last
            raise odd(f"the state {key!r} of parameter {name!r}", "memory that it shares")
        end = max(end, high)
        if place != nobody:
            end_of_state, last = max(end_of_state, high), place


def layers(leaves: list[Leaf], places: list[int]) -> None:
    """Put each leaf that overlaps earlier ones into a later layer than theirs.

    Args:
        leaves: the parameters.
        places: of each its place in the groups, which is when torch steps it.

    Raises:
        ParameterError: two overlap and one of them is stepped in a copy.
    """
    leaves = [leaves[k] for k in np.argsort(places)]
    bounds = [np.lib.array_utils.byte_bounds(leaf.array) for leaf in leaves]
    order = sorted((k for k in range(len(leaves)) if leaves[k].array.size), key=lambda k: bounds[k])
    open_until: list[int] = []
    pairs: list[tuple[int, int]] = []
    for k in order:
        open_until = [j for j in open_until if bounds[j][1] > bounds[k][0]]
        pairs += [(min(j, k), max(j, k)) for j in open_until]
        open_until.append(k)
    for first, second in sorted(pairs):
        _separate(leaves[first], leaves[second])


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
