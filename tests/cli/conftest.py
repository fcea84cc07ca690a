"""Stand-ins for tests of the race's laws: a task that counts, optimizers that cost nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isostep.cli.race.contest import Contestant
from isostep.cli.race.store import Store
from isostep.cli.race.task import Params


@dataclass
class Bowl:
    """Find the bottom of a bowl from noisy gradients; writes down everything it is asked."""

    name: str = "bowl"
    config: dict[str, Any] = field(default_factory=dict)
    starts: list[tuple[int, bytes]] = field(default_factory=list)
    batches_seen: list[bytes] = field(default_factory=list)

    def initial_parameters(self, seed: int) -> Params:
        w = np.random.default_rng([seed, 0]).normal(size=4)
        self.starts.append((seed, w.tobytes()))
        return {"w": w}

    def batches(self, seed: int, steps: int) -> Iterator[np.ndarray]:
        random = np.random.default_rng([seed, 1])
        for _ in range(steps):
            yield random.normal(scale=0.01, size=4)

    def loss_and_gradients(self, params: Params, batch: np.ndarray) -> tuple[float, Params]:
        self.batches_seen.append(batch.tobytes())
        return float(params["w"] @ params["w"]), {"w": 2 * params["w"] + batch}

    def validate(self, params: Params) -> dict[str, float]:
        loss = float(params["w"] @ params["w"])
        return {"loss": loss, "accuracy": 1 / (1 + loss)}


class Downhill:
    """The least optimizer that the race accepts."""

    state_bytes = 16

    def __init__(self, params: Params, learning_rate: float, factor: float = 1.0) -> None:
        self.params, self.rate = params, learning_rate * factor

    def step(self, grads: Params) -> None:
        for name, gradient in grads.items():
            self.params[name] -= self.rate * gradient


@pytest.fixture
def bowl() -> Bowl:
    return Bowl()


@pytest.fixture
def contestants() -> dict[str, Contestant]:
    return {
        "plain": Contestant(Downhill, centre=1e-3),
        "bold": Contestant(lambda params, rate: Downhill(params, rate, 3.0), centre=1.0),
        "timid": Contestant(lambda params, rate: Downhill(params, rate, 0.01), centre=0.1),
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


@pytest.fixture
def clock() -> Callable[[], float]:
    """A clock that ticks 2^-10 s at every look: binary, so that timings repeat exactly."""
    ticks = itertools.count()
    return lambda: next(ticks) * 2**-10
