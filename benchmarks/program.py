"""Which workers a run needs, in which order, with what budgets."""

from __future__ import annotations

from benchmarks import peers
from benchmarks.cases import CASES
from benchmarks.timing import QUICK, Budget
from benchmarks.worker import DENORMALS, LIMIT, OVERHEAD, TRAINING, Task

_TOGETHER = Budget(seconds=6.0)
_ALONE = Budget(seconds=2.0, least=3)
_LIMIT = Budget(seconds=3.0, least=7)
_DENORMALS = Budget(seconds=2.5)
_OVERHEAD = Budget(seconds=1.0)
_TRAINING = Budget(seconds=20.0)
_TRAINED = ("AdamW", "clip+AdamW+EMA")
_KERAS_ON_GPT2 = ("AdamW", "Adafactor", "clip+AdamW+EMA")


def tasks(
    models: list[str],
    cases: list[str],
    names: list[str],
    threads: int,
    *,
    huge_pages: bool = False,
    quick: bool = False,
) -> list[Task]:
    """The workers: isostep by itself first, then beside each set of peers."""

    def task(
        kind: str, given: list[str], where: list[str], what: list[str], budget: Budget
    ) -> Task:
        return Task(kind, given, where, what, QUICK if quick else budget, threads, huge_pages)

    # Large enough to live in memory, small enough to be quick where denormals are slow.
    denormals = [m for m in ("resnet50", models[0]) if m in models][:1]
    elementwise = [c for c in cases if c != "AdamW"]
    torch = ["torch"] if "torch" in names else []
    small = [m for m in models if m in ("mini", "tiny")]
    trained = [c for c in cases if c in _TRAINED and torch]
    found = [
        task(LIMIT, [], models, cases, _LIMIT),
        task(OVERHEAD, [], small, cases, _OVERHEAD),
        task(OVERHEAD, torch, small, cases if torch else [], _OVERHEAD),
        task(TRAINING, torch, ["transformer"], trained, _TRAINING),
        task(DENORMALS, [], denormals, elementwise, _DENORMALS),
        task(DENORMALS, torch, denormals, [c for c in cases if c == "AdamW"], _DENORMALS),
    ]
    for process in peers.processes(names):
        together = any(name in peers.TOGETHER for name in process)
        budget = _TOGETHER if together else _ALONE
        for some, which in _split(process, models, cases):
            found.append(task("peers", process, some, which, budget))
    return [t for t in found if t.cells]


def _split(
    process: list[str], models: list[str], cases: list[str]
) -> list[tuple[list[str], list[str]]]:
    """Models with their cases; of Keras on gpt2 a few stand for all, if all were asked for."""
    if not process[0].startswith("keras") or cases != list(CASES):
        return [(models, cases)]
    small = [m for m in models if m != "gpt2"]
    return [(small, cases), ([m for m in models if m == "gpt2"], list(_KERAS_ON_GPT2))]
