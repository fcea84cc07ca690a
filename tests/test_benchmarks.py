"""The benchmarks run, on a model of four small tensors; nothing here asserts a time."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks import (
    copy_limit,
    load,
    models,
    own,
    picture,
    program,
    readme,
    tables,
    targets,
    timing,
    worker,
)
from benchmarks.cases import CASES
from benchmarks.results import Results
from benchmarks.timing import Budget, Contestant

MINI = models.get("mini")
LEAST = Budget(seconds=0.0, least=2, most=2)


def results_of(kind: str, peers: list[str], cases: list[str]) -> Results:
    results = Results(["mini"], cases, peers, threads=1)
    for record in worker.run(worker.Task(kind, peers, ["mini"], cases, LEAST, 1)):
        results.add(json.loads(json.dumps(record)))
    assert results.failures() == []
    return results


@pytest.mark.parametrize("name", models.NAMES)
def test_models_have_the_stated_tensors_and_elements(name: str) -> None:
    assert models.get(name).name == name  # a wrong count is refused


@pytest.mark.parametrize("case", ["AdamW", "Adafactor", "clip+AdamW+EMA"])
def test_the_copy_moves_the_bytes_that_the_plan_states(case: str) -> None:
    grads = MINI.arrays(0.01, 1)
    optimizer = own.optimizer(CASES[case], MINI.arrays(0.02, 0))
    copy_limit.contestant(optimizer, grads).step()  # a wrong number of bytes is refused


@pytest.mark.parametrize(("reads", "writes"), [(1, 0), (1, 1), (2, 2), (4, 3), (5, 4)])
def test_the_copy_uses_every_value_that_it_reads(reads: int, writes: int) -> None:
    loop = copy_limit.source(reads, writes).split("in range(length):")[1].split("sums[")[0]
    stored = "".join(line.partition("=")[2] for line in loop.splitlines() if "[i] = x" not in line)
    assert all(f"x{k}" in loop.replace(f"x{k} = a{k}[i]", "") for k in range(reads)), stored
    assert loop.count("[i] = ") == writes


def test_contestants_take_turns_in_alternating_order_and_the_hopeless_leave() -> None:
    turns: list[str] = []
    long = np.zeros(1 << 16)

    def contestant(name: str, family: str, work: int) -> Contestant:
        def step() -> None:
            turns.append(name)
            for _ in range(work):
                np.sort(long + 1.0)

        return Contestant(name, family, step)

    three = [contestant("a", "own", 1), contestant("b", "x", 1), contestant("c", "x", 60)]
    timing.interleave(three, Budget(seconds=0.0, least=4, most=4, drop=3.0))
    assert [turn for turn, _ in itertools.groupby(turns)][:5] == ["a", "b", "c", "b", "a"]
    assert [len(c.seconds) for c in three] == [4, 4, 2]
    assert timing.paired_ratio(three[0], three[0]) == 1.0


def test_isostep_alone_is_measured_against_the_copy_and_itself() -> None:
    limit = results_of(worker.LIMIT, [], ["SGD"])
    share, speed = limit.copy_share("mini", "SGD") or (0.0, 0.0)
    assert share > 0
    assert speed > 0
    assert results_of(worker.DENORMALS, [], ["SGD"]).slowdown("mini", "SGD")["isostep"] > 0
    found = results_of(worker.OVERHEAD, [], ["SGD"]).overhead("mini", "SGD") or {}
    assert 0 < found["kernels_ms"] < found["step_ms"]


def test_a_peer_is_measured_shown_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    cases = ["RMSprop", "clip+AdamW+EMA"]
    results = results_of("peers", ["torch"], cases)
    for case in cases:
        for own_name in ("isostep", "isostep.torch"):
            speed = results.speed("mini", case, "torch", own_name)
            assert speed is not None
            assert speed.ratio == pytest.approx(speed.peer_ms / speed.own_ms)
    assert Results.read(results.to_dict()).best("mini", "RMSprop") == results.best(
        "mini", "RMSprop"
    )
    verdicts = targets.verdicts(results)
    assert {v.met for v in verdicts} == {None}  # all targets are about larger models
    console = Console(record=True, width=120)
    tables.show(console, results, verdicts)
    assert "clip+AdamW+EMA" in console.export_text()
    picture.write(tmp_path / "cpu.png", results)
    assert (tmp_path / "cpu.png").stat().st_size > 10_000


def test_a_refused_cell_is_reported_and_the_next_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise ValueError("no memory")

    monkeypatch.setattr(copy_limit, "contestant", refuse)
    records = list(worker.run(worker.Task(worker.LIMIT, [], ["mini"], ["SGD"], LEAST, 1)))
    assert records[-1]["error"] == "ValueError: no memory"


def test_a_training_loop_is_measured_in_its_two_parts() -> None:
    pytest.importorskip("torch")
    [_, record] = worker.run(worker.Task(worker.TRAINING, ["torch"], ["m"], ["AdamW"], LEAST, 1))
    assert set(record["training"]) > {"isostep.torch", "torch fused"}
    assert all(part > 0 for parts in record["training"].values() for part in parts.values())


def test_a_first_step_is_measured_with_and_without_kernels_on_disk() -> None:
    pytest.importorskip("torch")
    once = Budget(seconds=0.0, least=1, most=3)
    [_, record] = worker.run(worker.Task(worker.COLD, ["torch"], ["mini"], ["AdamW"], once, 1))
    found = record["cold"]
    assert found["kernels"] >= 1
    assert found["warm_ms"] < found["wall_s"] * 1e3  # nothing is compiled
    assert found["wall_s"] <= found["ready_s"]
    assert 0 < found["steady_ms"] < found["warm_ms"]


def test_trainings_are_measured_under_load(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    name = "everything at once"
    monkeypatch.setitem(load.LOADS, name, load.Load(1, 8, trainings=2, workers=1, processes=2))
    once = Budget(seconds=0.0, least=1, most=1)
    [_, record] = worker.run(worker.Task(worker.LOAD, ["torch"], [name], ["AdamW"], once, 1))
    found = record["load"]
    for figure in ("step_us", "iteration_us"):
        own, theirs = (found[contestant][figure] for contestant in load.CONTESTANTS)
        assert found["ratios"][figure] == own / theirs > 0


def test_a_training_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'no such'"):
        load.measure("two trainings in a process", "no such", 1, LEAST)


def test_parts_of_a_run_can_be_chosen() -> None:
    some = program.tasks(["mini"], list(CASES), ["torch"], 1, parts=[worker.COLD, worker.LOAD])
    assert [task.kind for task in some] == [worker.COLD, worker.LOAD]
    assert some[0].cells == [("mini", "AdamW"), ("mini", "Adafactor")]
    usual = program.tasks(list(models.DEFAULT), list(CASES), ["torch"], 1, parts=[worker.COLD])
    assert usual[0].models == list(models.COLD)


def test_every_cell_of_a_full_run_is_planned_once() -> None:
    peers = ["torch", "optax", "paddle"]
    todo = program.tasks(list(models.DEFAULT), list(CASES), peers, 2)
    cells = [(t.kind, tuple(t.peers), *cell) for t in todo for cell in t.cells]
    assert len(cells) == len(set(cells))
    assert {p for t in todo if t.kind == "peers" for p in t.peers} == set(peers)


def test_what_an_earlier_run_measured_is_kept_unless_it_is_measured_again() -> None:
    earlier = results_of(worker.LIMIT, [], ["SGD", "Adam"])
    now = results_of(worker.LIMIT, [], ["SGD"])
    again = now.records[0]
    now.keep(Results.read(earlier.to_dict()))
    assert [r["case"] for r in now.records] == ["Adam", "SGD"]
    assert now.records[1] is again
    assert now.cases == ["SGD", "Adam"]
    assert not now.complete  # overhead and denormals are not there
    earlier.threads = 2
    with pytest.raises(ValueError, match="threads"):
        now.keep(earlier)


def test_the_readme_shows_what_was_measured() -> None:
    text = readme.README.read_text()
    assert readme.with_table(text, Results.read(json.loads(readme.RESULTS.read_text()))) == text
