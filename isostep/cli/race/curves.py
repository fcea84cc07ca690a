"""The numbers behind both plots, prepared once for the picture and for the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from isostep.cli.race.results import Standing, Trial


@dataclass(frozen=True)
class Band:
    """Validation loss along the steps at the best learning rate: mean, lowest, highest of seeds."""

    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Sensitivity:
    """Final validation loss by learning rate, and the rates at which a run diverged."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    diverged: tuple[float, ...]


def band_of(trial: Trial) -> Band:
    """Return the curve of a trial, as far as every seed got."""
    length = min(len(run.checks) for run in trial.runs)
    looks = [[run.checks[index].loss for run in trial.runs] for index in range(length)]
    return Band(
        steps=tuple(check.step for check in trial.runs[0].checks[:length]),
        mean=tuple(math.fsum(losses) / len(losses) for losses in looks),
        low=tuple(map(min, looks)),
        high=tuple(map(max, looks)),
    )


def sensitivity_of(standing: Standing) -> Sensitivity:
    """Return how an optimizer's final loss depends on its learning rate."""
    trials = sorted(standing.trials, key=lambda trial: trial.learning_rate)
    finite = [trial for trial in trials if not trial.diverged]
    return Sensitivity(
        rates=tuple(trial.learning_rate for trial in finite),
        losses=tuple(trial.loss.mean for trial in finite),
        diverged=tuple(trial.learning_rate for trial in trials if trial.diverged),
    )


def log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers for a logarithmic axis from `low` to `high`, both > 0.

    Steps of 1, 2, 5 on a short axis, decades on a long one; at most some twelve.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = 1 + len(decades) // 12
    leading = (1, 2, 5) if len(decades) <= 4 else (1,)
    ticks = [float(f"{digit}e{decade}") for decade in decades[::every] for digit in leading]
    return [tick for tick in ticks if low <= tick <= high]


def loss_range(places: Sequence[Standing]) -> tuple[float, float]:
    """Return the losses between which the sensitivity plot has something to tell, both > 0.

    Rates that were far too large end at losses of any size; above the loss of the start there is
    nothing to learn from them.
    """
    starts = [s.best.runs[0].checks[0].loss for s in places if s.best.runs[0].checks]
    finals = [loss for s in places for loss in sensitivity_of(s).losses if loss > 0]
    best = [s.best.loss.mean for s in places if not s.best.diverged]
    high = 1.5 * max([*starts, *best], default=1.0)
    return min(0.9 * min(finals, default=high / 10), high / 2), high


def cross_height(top: float, standing: Standing) -> float:
    """Return the loss at which to mark that an optimizer diverged: one under another by rank."""
    return top / 1.1**standing.rank
