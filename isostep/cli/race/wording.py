"""Numbers as every face of the race shows them: terminal, picture and page alike."""

import math
from collections.abc import Sequence

from isostep.cli.race.contest import Budget
from isostep.cli.race.results import Spread, Standing, Trial

DIVERGED = "diverged"
NONE = "–"


def loss_text(loss: Spread) -> str:
    """Return `0.123 ± 0.006`, the mean to three significant digits, or that it diverged."""
    if not math.isfinite(loss.mean):
        return DIVERGED
    if loss.mean >= 1e5:
        return f"{loss.mean:.3g}"
    magnitude = math.floor(math.log10(loss.mean)) if loss.mean > 0 else 0
    decimals = min(max(2 - magnitude, 0), 8)
    spread = "" if loss.deviation is None else f" ± {loss.deviation:.{decimals}f}"
    return f"{loss.mean:.{decimals}f}{spread}"


def accuracy_text(accuracy: Spread | None) -> str:
    """Return `96.2 ± 0.3 %`; the spread is in percentage points."""
    if accuracy is None:
        return NONE
    spread = "" if accuracy.deviation is None else f" ± {100 * accuracy.deviation:.1f}"
    return f"{100 * accuracy.mean:.1f}{spread} %"


def rate_text(rate: float) -> str:
    """Return a learning rate in few characters: `0.001`, `3.2e-05`."""
    return f"{rate:g}"


def best_rate_text(standing: Standing) -> str:
    """Return the best learning rate, with a star where it lies at the edge of those tried."""
    return rate_text(standing.best.learning_rate) + (" *" if standing.at_the_edge else "")


def trial_text(trial: Trial) -> str:
    """Return what one trial came to, in a line."""
    if trial.diverged:
        return f"{trial.diverged} of {len(trial.runs)} runs diverged"
    accuracy = "" if trial.accuracy is None else f", accuracy {accuracy_text(trial.accuracy)}"
    return f"validation loss {loss_text(trial.loss)}{accuracy}"


def terms_text(budget: Budget, dialect: str, places: Sequence[Standing]) -> str:
    """Return a sentence on what was raced, and at which budget."""
    parameters = places[0].best.runs[0].parameters
    rates = _count(budget.trials, "learning rate")
    seeds = _count(budget.seeds, "seed")
    return (
        f"The same model of {parameters:,} parameters from the same starts, over the same batches. "
        f"Budget of each optimizer: {rates}, {seeds} each, {budget.steps:,} steps per run; "
        f"the best rate counts. Dialect: {dialect}."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


EDGE_NOTE = "* the smallest or largest learning rate tried: more of them may do better"
