"""A worker: measures the cells of one set of peers in a process of its own.

`python -m benchmarks.worker '{...}'` takes a `Task` as JSON and prints one JSON object a line:
first versions, then one object for each cell. Whatever else the frameworks print goes to stderr.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import cases, models, timing
from benchmarks.timing import Budget, Contestant

LIMIT, DENORMALS, OVERHEAD = "limit", "denormals", "overhead"
"""Kinds of cells about isostep itself."""

TRAINING, COLD, LOAD = "training", "cold", "load"
"""Kinds of cells that make their own arrays; the model of a load is its name."""

PEERS = "peers"
STARTUP = "startup"
"""The part of a run that has no worker."""
PARTS = (STARTUP, LIMIT, OVERHEAD, TRAINING, DENORMALS, PEERS, COLD, LOAD)


@dataclass(frozen=True)
class Task:
    """What one worker measures.

    Args:
        kind: one of `PARTS` but `STARTUP`.
        peers: the frameworks to load.
        models, cases: the cells, by name.
        budget: for each cell.
        threads: that every contestant may use.
        huge_pages: whether glibc asks for huge pages on behalf of all.
    """

    kind: str
    peers: list[str]
    models: list[str]
    cases: list[str]
    budget: Budget
    threads: int
    huge_pages: bool = False

    @property
    def cells(self) -> list[tuple[str, str]]:
        """(model, case) of each cell, in order."""
        return [(model, case) for model in self.models for case in self.cases]

    def to_json(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        """What `to_json` wrote."""
        fields = json.loads(text)
        return cls(**fields | {"budget": Budget(**fields["budget"])})


def run(task: Task) -> Iterator[dict[str, Any]]:
    """Measure, and yield what was found as it is found."""
    versions: dict[str, str] = {}
    for name in task.peers:
        versions |= _peer(name, task.threads).versions()
    yield {"versions": versions}
    arrays: tuple[str, Any, Any] = ("", None, None)
    for model, case in task.cells:
        if arrays[0] != model and task.kind not in _WITHOUT_ARRAYS:
            shapes = models.get(model)
            arrays = (model, shapes.arrays(0.02, seed=0), shapes.arrays(0.01, seed=1))
        start = time.perf_counter()
        found = _cell(task, model, case, *arrays[1:])
        cell = {"kind": task.kind, "peers": task.peers, "model": model, "case": case}
        when = {"day": time.strftime("%Y-%m-%d", time.gmtime())}
        yield cell | when | {"seconds": round(time.perf_counter() - start, 1)} | found
        gc.collect()


def _peer(name: str, threads: int) -> Any:
    from benchmarks import peers

    module = peers.load(name)
    if "torch" in name:
        import torch

        torch.set_num_threads(threads)
    return module


def _cell(task: Task, model: str, case: str, params: Any, grads: Any) -> dict[str, Any]:
    """One cell; an error is its result, and the next cell goes on."""
    kinds = {PEERS: _peers, LIMIT: _limit, DENORMALS: _denormals, OVERHEAD: _overhead}
    try:
        if task.kind in _WITHOUT_ARRAYS:
            return _WITHOUT_ARRAYS[task.kind](task, model, cases.CASES[case])
        return kinds[task.kind](task, cases.CASES[case], params, grads)
    except Exception as error:  # a peer may refuse what another does
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def _peers(task: Task, case: cases.Case, params: Any, grads: Any) -> dict[str, Any]:
    from benchmarks import own
    from benchmarks.peers import FRONT_ENDS, OTHER_FORMS

    contestants: list[Contestant] = []
    front_ends: list[Contestant] = []
    for name in task.peers:
        module = _peer(name, task.threads)
        contestants += module.contestants(case, params, grads)
        if name in FRONT_ENDS:
            front_ends.append(module.front_end(case, params, grads))
        if name in OTHER_FORMS:
            front_ends.append(module.other_form(case, params, grads))
    if not contestants:
        return {"absent": True}
    return _measured([own.contestant(case, params, grads), *front_ends], contestants, task.budget)


def _measured(ours: list[Contestant], others: list[Contestant], budget: Budget) -> dict[str, Any]:
    contestants = [*ours, *others]
    timing.warm(contestants)
    timing.interleave(contestants, budget)
    return {
        "times": {c.name: timing.summary(c) for c in contestants},
        "ratios": {
            own.name: {
                c.name: {
                    "of_medians": c.median / own.median,
                    "paired": timing.paired_ratio(c, own),
                }
                for c in others
            }
            for own in ours
        },
    }


def _limit(task: Task, case: cases.Case, params: Any, grads: Any) -> dict[str, Any]:
    from benchmarks import copy_limit, own

    optimizer = own.optimizer(case, params)
    step = own.on_gradients(optimizer, grads)
    found = _measured([step], [copy_limit.contestant(optimizer, grads)], task.budget)
    return found | {"step_bytes": optimizer.plan().step_bytes}


def _denormals(task: Task, case: cases.Case, params: Any, grads: Any) -> dict[str, Any]:
    from benchmarks import denormals

    contestants = denormals.contestants(case, params, grads, task.peers)
    found = _measured(contestants[:1], contestants[1:], task.budget)
    return found | {"slowdown": denormals.slowdowns(contestants)}


def _overhead(task: Task, case: cases.Case, params: Any, grads: Any) -> dict[str, Any]:
    from benchmarks import overhead, own

    if task.peers:
        contestant = _peer(task.peers[0], task.threads).front_end(case, params, grads)
    else:
        contestant = own.contestant(case, params, grads)
    return overhead.measure(contestant, task.budget) | {"tensors": len(params)}


def _training(task: Task, model: str, case: cases.Case) -> dict[str, Any]:
    from benchmarks import training

    return training.measure(case, task.budget)


def _cold(task: Task, model: str, case: cases.Case) -> dict[str, Any]:
    from benchmarks import cold

    return {"cold": cold.measure(model, case.rule, task.threads, task.budget)[cold.NOW]}


def _load(task: Task, model: str, case: cases.Case) -> dict[str, Any]:
    from benchmarks import load

    return {"load": load.measure(model, case.rule, task.threads, task.budget)}


_WITHOUT_ARRAYS: dict[str, Callable[[Task, str, cases.Case], dict[str, Any]]] = {
    TRAINING: _training,
    COLD: _cold,
    LOAD: _load,
}


def main() -> None:
    """Run the task on the command line."""
    task = Task.from_json(sys.argv[1])
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for found in run(task):
        results.write(json.dumps(found) + "\n")
        results.flush()
    results.flush()
    os._exit(0)  # some frameworks take seconds to tear down, or fail to


if __name__ == "__main__":
    main()
