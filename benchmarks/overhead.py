"""What a step costs outside of its kernels: checking, gathering addresses, coefficients."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.timing import PAUSE, WARM_UP, Budget, Contestant, wake
from isostep.engines.threads import Crew


@contextmanager
def _counted() -> Iterator[list[float]]:
    """The seconds that passes take inside this context, one entry for each call."""
    seconds: list[float] = []
    run = Crew.run

    def timed(*arguments: Any) -> None:
        start = time.perf_counter()
        run(*arguments)
        seconds.append(time.perf_counter() - start)

    # Passes only: kernels that look for gradients run serially, and are part of the rest.
    with mock.patch.object(Crew, "run", timed):
        yield seconds


def measure(contestant: Contestant, budget: Budget) -> dict[str, Any]:
    """Medians of a whole step, of its kernels and of the rest, in milliseconds."""
    for _ in range(WARM_UP):
        contestant.step()
    whole: list[float] = []
    kernels: list[float] = []
    end = time.perf_counter() + budget.seconds
    while len(whole) < budget.least or (len(whole) < budget.most and time.perf_counter() < end):
        time.sleep(PAUSE)
        wake(contestant)
        with _counted() as seconds:
            start = time.perf_counter()
            contestant.step()
            whole.append(time.perf_counter() - start)
        kernels.append(sum(seconds))
    rest = np.subtract(whole, kernels)
    return {
        "name": contestant.name,
        "step_ms": float(np.median(whole) * 1e3),
        "kernels_ms": float(np.median(kernels) * 1e3),
        "python_ms": float(np.median(rest) * 1e3),
        "repetitions": len(whole),
    }
