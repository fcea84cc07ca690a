"""One training run, from a seeded start to the last step or to the step at which it diverges."""

import math
import time
from collections.abc import Callable, Iterator
from itertools import islice
from statistics import median
from typing import Any

import numpy as np

from isostep.cli.race.contest import Observer, Optimizer
from isostep.cli.race.errors import RaceError
from isostep.cli.race.results import Check, Run
from isostep.cli.race.task import Params, Task

CHECKS_PER_RUN = 25


class _DivergedError(Exception):
    """A loss or an accuracy is no longer finite."""


def train(
    task: Task,
    make: Callable[[Params, float], Optimizer],
    learning_rate: float,
    seed: int,
    steps: int,
    observer: Observer | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Run:
    """Train once, with a look at the validation data at the start and some 25 times on the way.

    A loss that ceases to be finite ends the run as diverged. Only calls of `optimizer.step` are
    timed, and their median is kept, so that the first call, which compiles, does not count.

    Args:
        task: what to train.
        make: returns the optimizer over parameters, at a learning rate.
        learning_rate: > 0.
        seed: >= 0; determines the start and the batches.
        steps: optimizer steps, >= 1.
        observer: told of the steps reached.
        clock: seconds.

    Raises:
        RaceError: the task yields too few batches, or its validation returns no loss.
    """
    observer = observer or Observer()
    params = task.initial_parameters(seed)
    optimizer = make(params, learning_rate)
    check_every = max(1, steps // CHECKS_PER_RUN)
    checks: list[Check] = []
    durations: list[float] = []
    step, diverged_at = 0, None
    try:
        # A diverging run overflows on its way; its end is recorded, so warnings would be noise.
        with np.errstate(all="ignore"):
            checks.append(_check(task, params, step))
            for step, batch in enumerate(_exactly(steps, task, seed), start=1):
                loss, gradients = task.loss_and_gradients(params, batch)
                _finite(loss)
                start = clock()
                optimizer.step(gradients)
                durations.append(clock() - start)
                if step % check_every == 0 or step == steps:
                    checks.append(_check(task, params, step))
                    observer.run_reached(step)
    except _DivergedError:
        diverged_at = step
    return Run(
        checks=tuple(checks),
        diverged_at=diverged_at,
        step_ms=1e3 * median(durations) if durations else 0.0,
        state_bytes=int(optimizer.state_bytes),
        parameters=sum(array.size for array in params.values()),
    )


def _exactly(steps: int, task: Task, seed: int) -> Iterator[Any]:
    """Yield the first `steps` batches of a task, or say that there are fewer."""
    count = 0
    for batch in islice(task.batches(seed, steps), steps):
        yield batch
        count += 1
    if count < steps:
        raise RaceError(
            f"task {task.name!r}: batches(seed={seed}, steps={steps}) ended after {count} batches; "
            "it must yield one per step"
        )


def _check(task: Task, params: Params, step: int) -> Check:
    """Look at the validation data."""
    metrics = task.validate(params)
    if "loss" not in metrics:
        raise RaceError(
            f"task {task.name!r}: validate must return a mapping with 'loss', got {metrics!r}"
        )
    accuracy = metrics.get("accuracy")
    return Check(step, _finite(metrics["loss"]), None if accuracy is None else _finite(accuracy))


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise _DivergedError
    return float(value)
