"""What a race finds out: one run, the runs of one learning rate, and the final standings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

from isostep.cli.race.learning_rates import at_the_edge


@dataclass(frozen=True)
class Check:
    """One look at the validation data during a run: after `step` steps."""

    step: int
    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class Run:
    """One training run: one optimizer, one learning rate, one seed.

    Attributes:
        checks: looks at the validation data, by step; all finite.
        diverged_at: the step at which the loss ceased to be finite, or None.
        step_ms: median of the time of one call of `optimizer.step`, in milliseconds.
        state_bytes: bytes of the optimizer's state at the end.
        parameters: number of scalar parameters.
    """

    checks: tuple[Check, ...]
    diverged_at: int | None
    step_ms: float
    state_bytes: int
    parameters: int

    @property
    def loss(self) -> float:
        """Validation loss after the last step; infinity if the run diverged."""
        return math.inf if self.diverged_at is not None else self.checks[-1].loss

    @property
    def accuracy(self) -> float | None:
        """Validation accuracy after the last step; None if there is none or the run diverged."""
        return None if self.diverged_at is not None else self.checks[-1].accuracy


@dataclass(frozen=True)
class Spread:
    """A mean and, from two values on, the sample standard deviation."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarise `values`, at least one."""
        many = len(values) > 1 and all(map(math.isfinite, values))
        return cls(fmean(values), stdev(values) if many else None)


@dataclass(frozen=True)
class Trial:
    """The runs of one optimizer at one learning rate, one per seed, in the order of the seeds."""

    learning_rate: float
    runs: tuple[Run, ...]

    @property
    def loss(self) -> Spread:
        """Final validation loss over the seeds; the mean is infinite if any run diverged."""
        return Spread.of([run.loss for run in self.runs])

    @property
    def accuracy(self) -> Spread | None:
        """Final validation accuracy over the seeds that did not diverge, if there is any."""
        values = [run.accuracy for run in self.runs if run.accuracy is not None]
        return Spread.of(values) if values else None

    @property
    def diverged(self) -> int:
        """How many of the runs diverged."""
        return sum(run.diverged_at is not None for run in self.runs)


@dataclass(frozen=True)
class Standing:
    """One optimizer's place: all its trials, judged by the best."""

    rank: int
    optimizer: str
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The trial of the lowest mean validation loss."""
        return best_trial(self.trials)

    @property
    def step_ms(self) -> float:
        """Median over all runs of the time of one optimizer step, in milliseconds."""
        return median(run.step_ms for trial in self.trials for run in trial.runs)

    @property
    def state_bytes_per_parameter(self) -> float:
        """Bytes of optimizer state over the number of scalar parameters."""
        run = self.best.runs[0]
        return run.state_bytes / run.parameters

    @property
    def at_the_edge(self) -> bool:
        """Whether the best learning rate is the smallest or largest of those tried."""
        losses = {trial.learning_rate: trial.loss.mean for trial in self.trials}
        return at_the_edge(self.best.learning_rate, losses)


def best_trial(trials: Sequence[Trial]) -> Trial:
    """Return the trial of the lowest mean validation loss; of equals the smallest rate."""
    return min(trials, key=lambda trial: (trial.loss.mean, trial.learning_rate))


def standings(trials: Mapping[str, Sequence[Trial]]) -> list[Standing]:
    """Rank the optimizers that have finished a trial by their best mean validation loss."""
    entered = [(label, tuple(tried)) for label, tried in trials.items() if tried]
    entered.sort(key=lambda entry: best_trial(entry[1]).loss.mean)
    return [Standing(rank, label, tried) for rank, (label, tried) in enumerate(entered, start=1)]
