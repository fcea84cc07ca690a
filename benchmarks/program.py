"""Which workers a run needs, in which order, with what budgets."""

from __future__ import annotations

from collections.abc import Collection

from benchmarks import cold, load, models, peers
from benchmarks.cases import CASES
from benchmarks.timing import QUICK, Budget
from benchmarks.worker import COLD, DENORMALS, LIMIT, LOAD, OVERHEAD, PARTS, PEERS, TRAINING, Task

_TOGETHER = Budget(seconds=6.0)
_ALONE = Budget(seconds=2.0, least=3)
_LIMIT = Budget(seconds=3.0, least=7)
_DENORMALS = Budget(seconds=2.5)
_OVERHEAD = Budget(seconds=1.0)
_TRAINING = Budget(seconds=20.0)
_TRAINED = ("AdamW", "clip+AdamW+EMA")
_KERAS_ON_GPT2 = ("AdamW", "Adafactor", "clip+AdamW+EMA")


def tasks(
    chosen: list[str],
    cases: list[str],
    names: list[str],
    threads: int,
    *,
    parts: Collection[str] = PARTS,
    huge_pages: bool = False,
    quick: bool = False,
) -> list[Task]:
    """The workers: isostep by itself first, then beside each set of peers.

    Args:
        chosen: models. The usual ones stand for those whose first steps are measured, too.
        cases, names: of the peers, in order.
        threads, huge_pages: for all workers.
        parts: the kinds of workers.
        quick: with little time for each cell.
    """

    def task(
        kind: str, given: list[str], where: list[str], what: list[str], budget: Budget
    ) -> Task:
        return Task(kind, given, where, what, QUICK if quick else budget, threads, huge_pages)

    # Large enough to live in memory, small enough to be quick where denormals are slow.
    denormals = [m for m in ("resnet50", chosen[0]) if m in chosen][:1]
    elementwise = [c for c in cases if c != "AdamW"]
    torch = ["torch"] if "torch" in names else []
    small = [m for m in chosen if m in ("mini", "tiny")]
    trained = [c for c in cases if c in _TRAINED and torch]
    fresh = list(models.COLD) if chosen == list(models.DEFAULT) else chosen
    cold_cases = [c for c in cases if c in cold.RULES and torch]
    loaded = [c for c in cases if c in load.RULES and torch]
    found = [
        task(LIMIT, [], chosen, cases, _LIMIT),
        task(OVERHEAD, [], small, cases, _OVERHEAD),
        task(OVERHEAD, torch, small, cases if torch else [], _OVERHEAD),
        task(TRAINING, torch, ["transformer"], trained, _TRAINING),
        task(DENORMALS, [], denormals, elementwise, _DENORMALS),
        task(DENORMALS, torch, denormals, [c for c in cases if c == "AdamW"], _DENORMALS),
        task(COLD, torch, fresh, cold_cases, cold.BUDGET),
        task(LOAD, torch, list(load.LOADS), loaded, load.BUDGET),
    ]
    for process in peers.processes(names):
        together = any(name in peers.TOGETHER for name in process)
        budget = _TOGETHER if together else _ALONE
        for some, which in _split(process, chosen, cases):
            found.append(task(PEERS, process, some, which, budget))
    return [t for t in found if t.cells and t.kind in parts]


def _split(
    process: list[str], chosen: list[str], cases: list[str]
) -> list[tuple[list[str], list[str]]]:
    """Models with their cases; of Keras on gpt2 a few stand for all, if all were asked for."""
    if not process[0].startswith("keras") or cases != list(CASES):
        return [(chosen, cases)]
    small = [m for m in chosen if m != "gpt2"]
    return [(small, cases), ([m for m in chosen if m == "gpt2"], list(_KERAS_ON_GPT2))]
