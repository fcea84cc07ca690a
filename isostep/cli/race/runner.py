"""The race itself: every optimizer from the same start, over the same batches, at equal budget.

Optimizers take turns, one learning rate each per round, so that a machine that slows down slows
all of them. A finished run goes to the store before the next begins.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from isostep.cli.race.contest import Budget, Contestant, Observer
from isostep.cli.race.learning_rates import next_learning_rate
from isostep.cli.race.results import Run, Standing, Trial, standings
from isostep.cli.race.store import Store
from isostep.cli.race.task import Task, task_identity
from isostep.cli.race.training import train


def run_race(
    task: Task,
    contestants: Mapping[str, Contestant],
    budget: Budget,
    store: Store,
    observer: Observer | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Standing]:
    """Train `task` with every contestant at the same budget and rank them.

    Interrupting it (KeyboardInterrupt) loses at most the run in progress; calling it again with the
    same store goes on from there and ends with the same standings.

    Args:
        task: what to train.
        contestants: by the label that tables and pictures show.
        budget: what each contestant may spend.
        store: where finished runs are kept and looked for.
        observer: told of every run.
        clock: seconds; measures the optimizer steps.

    Returns:
        The contestants by mean validation loss at their best learning rate, best first.

    Raises:
        RaceError: the task yields too few batches, or its validation returns no loss.
    """
    observer = observer or Observer()
    identity = task_identity(task)
    trials: dict[str, list[Trial]] = {label: [] for label in contestants}

    def finished_run(label: str, rate: float, seed: int) -> Run:
        contestant = contestants[label]
        key = run_key(identity, contestant.identity or {"label": label}, rate, seed, budget.steps)
        run = store.load(key)
        if run is None:
            observer.run_started(label, rate, seed)
            run = train(task, contestant.make, rate, seed, budget.steps, observer, clock)
            store.save(key, run)
        observer.run_finished(run)
        return run

    for turn in range(budget.trials):
        for label, contestant in contestants.items():
            rate = _rate_of_turn(turn, contestant.centre, trials[label], budget)
            runs = [finished_run(label, rate, seed) for seed in range(budget.seeds)]
            trials[label].append(Trial(rate, tuple(runs)))
            observer.trial_finished(label, trials[label][-1], standings(trials))
    return standings(trials)


def run_key(
    task: Mapping[str, Any], optimizer: Mapping[str, Any], rate: float, seed: int, steps: int
) -> dict[str, Any]:
    """Return everything that determines a run, as JSON."""
    from isostep import __version__

    return {
        "isostep": __version__,
        "task": dict(task),
        "optimizer": dict(optimizer),
        "learning_rate": rate,
        "seed": seed,
        "steps": steps,
    }


def _rate_of_turn(turn: int, centre: float, trials: Sequence[Trial], budget: Budget) -> float:
    if isinstance(budget.learning_rates, tuple):
        return budget.learning_rates[turn]
    return next_learning_rate(centre, {trial.learning_rate: trial.loss.mean for trial in trials})
