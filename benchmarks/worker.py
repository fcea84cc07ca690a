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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import cases, models, timing
from benchmarks.timing import Budget, Contestant

LIMIT, DENORMALS, OVERHEAD = "limit", "denormals", "overhead"
"""Kinds of cells that need no peer."""


@dataclass(frozen=True)
class Task:
    """What one worker measures.

    Args:
        kind: `"peers"`, or one of the kinds that need none.
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
        if arrays[0] != model:
            shapes = models.get(model)
            arrays = (model, shapes.arrays(0.02, seed=0), shapes.arrays(0.01, seed=1))
        start = time.perf_counter()
        found = _cell(task, case, *arrays[1:])
        seconds = round(time.perf_counter() - start, 1)
        yield {"kind": task.kind, "model": model, "case": case, "seconds": seconds} | found
        gc.collect()


def _peer(name: str, threads: int) -> Any:
    from benchmarks import peers

    module = peers.load(name)
    if "torch" in name:
        import torch

        torch.set_num_threads(threads)
    return module


def _cell(task: Task, case: str, params: Any, grads: Any) -> dict[str, Any]:
    """One cell; an error is its result, and the next cell goes on."""
    measure = {LIMIT: _limit, DENORMALS: _denormals, OVERHEAD: _overhead}.get(task.kind, _peers)
    try:
        return measure(task, cases.CASES[case], params, grads)
    except Exception as error:  # a peer may refuse what another does
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def _peers(task: Task, case: cases.Case, params: Any, grads: Any) -> dict[str, Any]:
    from benchmarks import own

    contestants = [own.contestant(case, params, grads)]
    for name in task.peers:
        contestants += _peer(name, task.threads).contestants(case, params, grads)
    if len(contestants) == 1:
        return {"absent": True}
    return _measured(contestants, task.budget)


def _measured(contestants: list[Contestant], budget: Budget) -> dict[str, Any]:
    timing.warm(contestants)
    timing.interleave(contestants, budget)
    first, *others = contestants
    return {
        "times": {c.name: timing.summary(c) for c in contestants},
        "ratios": {
            c.name: {
                "of_medians": c.median / first.median,
                "paired": timing.paired_ratio(c, first),
            }
            for c in others
        },
    }


def _limit(task: Task, case: cases.Case, params: Any, grads: Any) -> dict[str, Any]:
    from benchmarks import copy_limit, own

    optimizer = own.optimizer(case, params)
    step = own.on_gradients(optimizer, grads)
    found = _measured([step, copy_limit.contestant(optimizer, grads)], task.budget)
    return found | {"step_bytes": optimizer.plan().step_bytes}


def _denormals(task: Task, case: cases.Case, params: Any, grads: Any) -> dict[str, Any]:
    from benchmarks import denormals

    contestants = denormals.contestants(case, params, grads, task.peers)
    found = _measured(contestants, task.budget)
    return found | {"slowdown": denormals.slowdowns(contestants)}


def _overhead(task: Task, case: cases.Case, params: Any, grads: Any) -> dict[str, Any]:
    from benchmarks import overhead

    return overhead.measure(case, params, grads, task.budget)


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
