"""Parameters that share memory: torch steps them one after the other, and so must a kernel."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from isostep.engines.leaf import Leaf
from isostep.errors import ParameterError


def layers(leaves: list[Leaf]) -> None:
    """Put each leaf that overlaps earlier ones into a later layer than theirs.

    Raises:
        ParameterError: two overlap and one of them is stepped in a copy.
    """
    bounds = [np.lib.array_utils.byte_bounds(leaf.array) for leaf in leaves]
    order = sorted((k for k in range(len(leaves)) if leaves[k].array.size), key=lambda k: bounds[k])
    open_until: list[int] = []
    for k in order:
        open_until = [j for j in open_until if bounds[j][1] > bounds[k][0]]
        for j in open_until:
            _separate(leaves, min(j, k), max(j, k))
        open_until.append(k)


def _separate(leaves: list[Leaf], first: int, second: int) -> None:
    a, b = leaves[first], leaves[second]
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
