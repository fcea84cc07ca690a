"""Interleaved timing: contestants step in turns, so that what the machine does hits all alike.

A turn is a pause, in which the spinning threads of the contestant before go to sleep; steps that
are not timed, for some milliseconds, since a processor that has slept is slow at first, and no
training loop sleeps before a step; and one step that is timed.
Every other round runs in the opposite order. Medians are taken over rounds, and so are ratios
between two contestants of one round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

PAUSE = 0.010
AWAKE = 0.010
WARM_UP = 3


@dataclass
class Contestant:
    """Something whose step is timed.

    Args:
        name: unique in its cell.
        family: of one family only the fastest matters, and the others are dropped once it is clear.
        step: does one step and returns when it is done.
    """

    name: str
    family: str
    step: Callable[[], object]
    seconds: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of its steps, in seconds."""
        return float(np.median(self.seconds))


@dataclass(frozen=True)
class Budget:
    """How long a cell is measured.

    Args:
        seconds: no new round starts after this time, once there were `least` rounds.
        least, most: bounds of the number of rounds.
        drop: a contestant this many times slower than the fastest of its family has had enough
            after `least` rounds, and one twice that after two.
    """

    seconds: float = 6.0
    least: int = 5
    most: int = 200
    drop: float = 1.3


QUICK = Budget(seconds=0.3, least=3, most=20)


def warm(contestants: Iterable[Contestant]) -> None:
    """Step each contestant until its code is compiled and its pages are there."""
    for contestant in contestants:
        for _ in range(WARM_UP):
            contestant.step()


def interleave(contestants: Sequence[Contestant], budget: Budget) -> None:
    """Time the contestants in turns; the times are left in them."""
    end = time.perf_counter() + budget.seconds
    running = list(contestants)
    for number in range(budget.most):
        if number >= budget.least and time.perf_counter() > end:
            break
        if number >= 2:
            running = _still_running(running, budget.drop * (1 if number >= budget.least else 2))
        for contestant in running if number % 2 == 0 else reversed(running):
            contestant.seconds.append(_turn(contestant))
            contestant.rounds.append(number)


def wake(contestant: Contestant) -> None:
    """Step for a while; not at all if one step is known to take longer."""
    end = time.perf_counter() + AWAKE
    if contestant.seconds and contestant.seconds[-1] > 2 * AWAKE:
        return
    while time.perf_counter() < end:
        contestant.step()


def _turn(contestant: Contestant) -> float:
    time.sleep(PAUSE)
    wake(contestant)
    start = time.perf_counter()
    contestant.step()
    return time.perf_counter() - start


def _still_running(running: Sequence[Contestant], drop: float) -> list[Contestant]:
    best: dict[str, float] = {}
    for contestant in running:
        best[contestant.family] = min(best.get(contestant.family, np.inf), contestant.median)
    return [c for c in running if c.median <= drop * best[c.family]]


def paired_ratio(slow: Contestant, fast: Contestant) -> float:
    """The median over rounds of how many times longer `slow` took than `fast`."""
    other = dict(zip(fast.rounds, fast.seconds, strict=True))
    pairs = [s / other[n] for n, s in zip(slow.rounds, slow.seconds, strict=True) if n in other]
    return float(np.median(pairs))


def summary(contestant: Contestant) -> dict[str, float | int | str]:
    """What is kept of a contestant's times, in milliseconds."""
    low, middle, high = np.percentile(contestant.seconds, [10, 50, 90]) * 1e3
    return {
        "family": contestant.family,
        "median_ms": float(middle),
        "p10_ms": float(low),
        "p90_ms": float(high),
        "repetitions": len(contestant.seconds),
    }
