"""A training loop in torch, and the times of its two halves."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from torch import Tensor, nn

from benchmarks.peers import torch_optim


class Loop:
    """One model, and one way to step it.

    Args:
        model: returns its loss.
        way: makes the optimizer.
    """

    def __init__(self, model: nn.Module, way: torch_optim.Way) -> None:
        self.model, self.way = model, way
        self.step: Callable[[], object] | None = None
        self.times: list[tuple[float, float]] = []

    def turn(self, *inputs: Tensor) -> None:
        """One iteration; keeps the seconds of forward and backward, and of the step."""
        start = time.perf_counter()
        for p in self.model.parameters():
            p.grad = None
        self.model(*inputs).backward()
        middle = time.perf_counter()
        if self.step is None:  # averaging and clipping want gradients to be there
            self.step = self.way(list(self.model.parameters()))
        self.step()
        self.times.append((middle - start, time.perf_counter() - middle))

    def medians(self, skip: int = 0) -> tuple[float, float]:
        """Of the two halves, in seconds, without the first iterations."""
        model, step = np.median(self.times[skip:], axis=0)
        return float(model), float(step)
