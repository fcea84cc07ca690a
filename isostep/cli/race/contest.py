"""The terms of a race: who runs, what each may spend, and who watches."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from isostep.cli.race.errors import RaceError
from isostep.cli.race.results import Run, Standing, Trial
from isostep.cli.race.task import Params


class Optimizer(Protocol):
    """What the race asks of an optimizer: isostep's NumPy front-end, or anything like it."""

    @property
    def state_bytes(self) -> int:
        """Bytes of optimizer state."""
        ...

    def step(self, grads: Any, /) -> Any:
        """Update the parameters in place with gradients by name."""
        ...


@dataclass(frozen=True)
class Contestant:
    """One optimizer in a race.

    Args:
        make: returns a new optimizer over parameters, at a learning rate.
        centre: the learning rate its walk starts from, > 0.
        identity: everything else that determines its numbers (rule, hyperparameters, dialect), as
            JSON; part of the key of each run. Where empty, the label stands in for it.
    """

    make: Callable[[Params, float], Optimizer]
    centre: float = 1e-3
    identity: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """What every optimizer may spend, the same for all.

    Args:
        steps: optimizer steps of one run, >= 1.
        seeds: runs per learning rate, >= 1; their seeds are 0, 1, ... .
        learning_rates: how many each optimizer tries, >= 1; or the rates themselves, each > 0.

    Raises:
        RaceError: a number out of range.
    """

    steps: int = 400
    seeds: int = 3
    learning_rates: int | tuple[float, ...] = 5

    def __post_init__(self) -> None:
        rates = self.learning_rates
        numbers = {"steps": self.steps, "seeds": self.seeds, "learning rates": rates}
        for name, value in numbers.items():
            if isinstance(value, int) and value < 1:
                raise RaceError(f"{name} must be at least 1, got {value}")
        if isinstance(rates, tuple):
            if not rates or not all(0 < rate < math.inf for rate in rates):
                raise RaceError(f"learning rates must be positive and finite, got {rates}")
            if len(set(rates)) < len(rates):
                raise RaceError(f"learning rates must differ, got {rates}")

    @property
    def trials(self) -> int:
        """Learning rates tried by each optimizer."""
        rates = self.learning_rates
        return rates if isinstance(rates, int) else len(rates)

    @property
    def runs(self) -> int:
        """Training runs of each optimizer."""
        return self.trials * self.seeds


class Observer:
    """Told what happens in a race; this one does not listen."""

    def run_started(self, label: str, learning_rate: float, seed: int) -> None:
        """Hear that a run begins to train."""

    def run_reached(self, step: int) -> None:
        """Hear that the current run has taken `step` steps."""

    def run_finished(self, run: Run) -> None:
        """Hear that a run has ended, or was found finished on disk and has not been started."""

    def trial_finished(self, label: str, trial: Trial, so_far: Sequence[Standing]) -> None:
        """Hear that an optimizer has tried a learning rate with every seed."""
