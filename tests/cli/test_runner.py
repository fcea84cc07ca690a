"""The laws of a race: equal budgets, equal starts, nothing run twice, nothing lost."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from isostep.cli.race.contest import Budget, Contestant, Observer
from isostep.cli.race.errors import RaceError
from isostep.cli.race.results import Run, Standing
from isostep.cli.race.runner import run_race
from isostep.cli.race.store import Store
from isostep.cli.race.table import race_as_json
from isostep.cli.race.task import Params

from .conftest import Bowl, Downhill

BUDGET = Budget(steps=12, seeds=2, learning_rates=4)
Contestants = Mapping[str, Contestant]
Clock = Callable[[], float]


class Witness(Observer):
    """Counts the runs that were trained, and may interrupt one."""

    def __init__(self, interrupt_in: int | None = None) -> None:
        self.started: Counter[str] = Counter()
        self.interrupt_in = interrupt_in

    def run_started(self, label: str, learning_rate: float, seed: int) -> None:
        self.started[label] += 1

    def run_reached(self, step: int) -> None:
        if self.started.total() == self.interrupt_in and step > 5:
            raise KeyboardInterrupt


def race(
    bowl: Bowl, contestants: Contestants, store: Store, clock: Clock, witness: Witness | None = None
) -> list[Standing]:
    return run_race(bowl, contestants, BUDGET, store, witness, clock)


def test_every_optimizer_gets_the_same_budget(
    bowl: Bowl, contestants: Contestants, store: Store, clock: Clock
) -> None:
    witness = Witness()
    places = race(bowl, contestants, store, clock, witness)
    assert set(witness.started.values()) == {BUDGET.runs} == {4 * 2}
    assert {place.optimizer for place in places} == set(contestants)
    for place in places:
        assert len({trial.learning_rate for trial in place.trials}) == 4
        assert all(len(trial.runs) == 2 for trial in place.trials)
        for trial in place.trials:
            for run in trial.runs:
                assert run.diverged_at is not None or run.checks[-1].step == BUDGET.steps


def test_every_optimizer_starts_alike_and_sees_the_same_batches(
    contestants: Contestants, store: Store, clock: Clock
) -> None:
    seen: dict[str, tuple[Any, ...]] = {}
    for label, contestant in contestants.items():
        bowl = Bowl()
        race(bowl, {label: contestant}, store, clock)
        seen[label] = (bowl.starts, bowl.batches_seen)
    assert len(set(map(repr, seen.values()))) == 1


def test_ranks_follow_the_mean_validation_loss_at_the_best_rate(
    bowl: Bowl, contestants: Contestants, store: Store, clock: Clock
) -> None:
    places = race(bowl, contestants, store, clock)
    losses = [place.best.loss.mean for place in places]
    assert losses == sorted(losses)
    assert [place.rank for place in places] == [1, 2, 3]
    for place in places:
        assert place.best.loss.mean == min(trial.loss.mean for trial in place.trials)


def test_only_optimizer_steps_are_timed(
    bowl: Bowl, contestants: Contestants, store: Store, clock: Clock
) -> None:
    for place in race(bowl, contestants, store, clock):
        assert place.step_ms == 1e3 * 2**-10
        assert place.state_bytes_per_parameter == 16 / 4


def test_a_finished_run_is_not_run_again(
    bowl: Bowl, contestants: Contestants, store: Store, clock: Clock
) -> None:
    first = race(bowl, contestants, store, clock)
    again, witness = Bowl(), Witness()
    assert race(again, contestants, store, clock, witness) == first
    assert witness.started.total() == 0
    assert again.batches_seen == []


def test_another_budget_of_seeds_or_rates_runs_only_what_is_new(
    bowl: Bowl, contestants: Contestants, store: Store, clock: Clock
) -> None:
    race(bowl, contestants, store, clock)
    witness = Witness()
    more = Budget(steps=12, seeds=2, learning_rates=5)
    run_race(bowl, contestants, more, store, witness, clock)
    assert witness.started.total() == len(contestants) * 2


@pytest.mark.parametrize("at", [1, 2, 7, 24])
def test_interrupt_and_resume_gives_the_table_of_an_uninterrupted_race(
    bowl: Bowl, contestants: Contestants, store: Store, clock: Clock, at: int, tmp_path: Any
) -> None:
    whole = race(bowl, contestants, store, clock)
    other = Store(tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        race(bowl, contestants, other, clock, Witness(interrupt_in=at))
    assert len(list(other.directory.iterdir())) == at - 1
    witness = Witness()
    resumed = race(bowl, contestants, other, clock, witness)
    assert witness.started.total() == BUDGET.runs * len(contestants) - (at - 1)
    assert resumed == whole


def test_a_damaged_run_is_run_again(
    bowl: Bowl, contestants: Contestants, store: Store, clock: Clock
) -> None:
    whole = race(bowl, contestants, store, clock)
    victim = sorted(store.directory.iterdir())[3]
    victim.write_bytes(victim.read_bytes()[:-20])
    witness = Witness()
    assert race(bowl, contestants, store, clock, witness) == whole
    assert witness.started.total() == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "another"},
        {"config": {"width": 5}},
    ],
)
def test_runs_of_another_task_are_not_taken_for_its_own(
    bowl: Bowl, contestants: Contestants, store: Store, clock: Clock, changed: dict[str, Any]
) -> None:
    race(bowl, contestants, store, clock)
    witness = Witness()
    race(Bowl(**changed), contestants, store, clock, witness)
    assert witness.started.total() == BUDGET.runs * len(contestants)


def test_divergence_is_reported_and_not_fatal(bowl: Bowl, store: Store, clock: Clock) -> None:
    contestants = {"steady": Contestant(Downhill), "wild": Contestant(Downhill, identity={"w": 1})}
    budget = Budget(steps=2000, seeds=2, learning_rates=(0.1, 1e30))
    places = run_race(bowl, contestants, budget, store, clock=clock)
    for place in places:
        good, bad = place.trials
        assert place.best is good
        assert bad.diverged == 2
        assert math.isinf(bad.loss.mean)
        assert bad.accuracy is None
        assert all(run.diverged_at and run.diverged_at < 100 for run in bad.runs)
    only_bad = Budget(steps=2000, seeds=2, learning_rates=(1e30,))
    places = run_race(bowl, contestants, only_bad, store, clock=clock)
    document = json.dumps(race_as_json("bowl", "torch", only_bad, places), allow_nan=False)
    assert json.loads(document)["standings"][0]["loss"] is None


def test_a_task_with_too_few_batches_is_told_so(contestants: Contestants, store: Store) -> None:
    class Short(Bowl):
        def batches(self, seed: int, steps: int) -> Iterator[np.ndarray]:
            yield np.zeros(4)

    with pytest.raises(RaceError, match=r"'bowl'.*ended after 1 batches"):
        run_race(Short(), contestants, BUDGET, store)
    assert list(store.directory.iterdir()) == []


def test_a_validation_without_loss_is_told_so(contestants: Contestants, store: Store) -> None:
    class Blind(Bowl):
        def validate(self, params: Params) -> dict[str, float]:
            return {"acuracy": 1.0}

    with pytest.raises(RaceError, match=r"validate must return.*'loss'.*acuracy"):
        run_race(Blind(), contestants, BUDGET, store)


def test_a_task_without_accuracy_races(contestants: Contestants, store: Store) -> None:
    class Regression(Bowl):
        def validate(self, params: Params) -> dict[str, float]:
            return {"loss": super().validate(params)["loss"]}

    places = run_race(Regression(), contestants, BUDGET, store)
    assert all(place.best.accuracy is None for place in places)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"seeds": -1}, "seeds must be at least 1"),
        ({"learning_rates": 0}, "learning rates must be at least 1"),
        ({"learning_rates": ()}, "positive"),
        ({"learning_rates": (0.1, -1.0)}, "positive"),
        ({"learning_rates": (math.nan,)}, "positive"),
        ({"learning_rates": (0.1, 0.1)}, "differ"),
    ],
)
def test_a_budget_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RaceError, match=message):
        Budget(**options)


def test_the_loss_of_a_run_is_that_of_its_last_check() -> None:
    run = Run(checks=(), diverged_at=3, step_ms=0.1, state_bytes=0, parameters=1)
    assert math.isinf(run.loss)
