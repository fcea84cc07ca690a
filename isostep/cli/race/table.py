"""The standings as a rich table, and as JSON for other programs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from isostep.cli.console import as_it_is
from isostep.cli.race.contest import Budget
from isostep.cli.race.results import Check, Run, Spread, Standing, Trial
from isostep.cli.race.wording import (
    EDGE_NOTE,
    accuracy_text,
    best_rate_text,
    loss_text,
)

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = {
    "#": "rank",
    "optimizer": "optimizer",
    "validation loss": "validation loss",
    "accuracy": "accuracy",
    "best lr": "best learning rate",
    "ms/step": "ms per step",
    "state B/param": "state bytes per parameter",
}
"""The columns: a heading for 80 characters, and in full."""


def cells(standing: Standing) -> list[str]:
    """Return one optimizer's row, a text for each of `HEADINGS`."""
    return [
        str(standing.rank),
        standing.optimizer,
        loss_text(standing.best.loss),
        accuracy_text(standing.best.accuracy),
        best_rate_text(standing),
        f"{standing.step_ms:.3f}",
        f"{standing.state_bytes_per_parameter:.2f}",
    ]


def table_of(places: Sequence[Standing], title: str | None = None) -> "Table":
    """Return the standings as a table for `rich.console.Console.print`."""
    from rich import box
    from rich.table import Table

    edge = any(standing.at_the_edge for standing in places)
    table = Table(
        title=title and as_it_is(title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        caption=EDGE_NOTE if edge else None,
        caption_justify="left",
    )
    for heading in HEADINGS:
        table.add_column(
            heading,
            justify="left" if heading == "optimizer" else "right",
            overflow="fold",
            # On 80 columns the long headings break, the numbers and short names do not.
            no_wrap=heading in ("validation loss", "accuracy"),
            min_width=10 if heading == "optimizer" else None,
        )
    for standing in places:
        style = "bold green" if standing.rank == 1 else None
        table.add_row(*map(as_it_is, cells(standing)), style=style)
    return table


def race_as_json(
    task: str, dialect: str, budget: Budget, places: Sequence[Standing]
) -> dict[str, Any]:
    """Return the whole race as a value for `json.dump`: a number or null, never infinity.

    `loss` and `accuracy` are `{"mean", "deviation"}` over the seeds at the best learning rate;
    `trials` holds every learning rate tried with the curve of each seed; times are in milliseconds.
    """
    return {
        "task": task,
        "dialect": dialect,
        "steps": budget.steps,
        "seeds": budget.seeds,
        "learning_rates": budget.trials,
        "standings": [_standing_json(standing) for standing in places],
    }


def _standing_json(standing: Standing) -> dict[str, Any]:
    return {
        "rank": standing.rank,
        "optimizer": standing.optimizer,
        "loss": _spread_json(standing.best.loss),
        "accuracy": _spread_json(standing.best.accuracy),
        "best_lr": standing.best.learning_rate,
        "best_lr_at_edge": standing.at_the_edge,
        "diverged_runs_at_best_lr": standing.best.diverged,
        "ms_per_step": standing.step_ms,
        "state_bytes_per_parameter": standing.state_bytes_per_parameter,
        "trials": [_trial_json(trial) for trial in standing.trials],
    }


def _trial_json(trial: Trial) -> dict[str, Any]:
    return {
        "lr": trial.learning_rate,
        "loss": _spread_json(trial.loss),
        "accuracy": _spread_json(trial.accuracy),
        "diverged_runs": trial.diverged,
        "runs": [_run_json(seed, run) for seed, run in enumerate(trial.runs)],
    }


def _run_json(seed: int, run: Run) -> dict[str, Any]:
    return {
        "seed": seed,
        "diverged_at": run.diverged_at,
        "ms_per_step": run.step_ms,
        "curve": [_check_json(check) for check in run.checks],
    }


def _check_json(check: Check) -> dict[str, Any]:
    return {"step": check.step, "loss": check.loss, "accuracy": check.accuracy}


def _spread_json(spread: Spread | None) -> dict[str, float | None] | None:
    if spread is None or spread.mean == float("inf"):
        return None
    return {"mean": spread.mean, "deviation": spread.deviation}
