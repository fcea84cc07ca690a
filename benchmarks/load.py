"""The step in training loops on a busy machine: isostep.torch beside torch's fused one.

Each of the two trains in processes of its own, in turns: `python -m benchmarks.load` by itself.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import IO, Annotated, Any, Self

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.timing import Budget

OURS, THEIRS = "isostep.torch", "torch fused"
CONTESTANTS = (OURS, THEIRS)
RULES = ("AdamW",)


@dataclass(frozen=True)
class Load:
    """What trains at once: perceptrons whose layers are as wide as their input.

    Args:
        layers, width: of each; a layer has two parameters.
        trainings: in a process, each in a thread of its own.
        workers: processes of the DataLoader that brings the data; 0: it is there.
        processes: that do all this at once.
    """

    layers: int
    width: int
    trainings: int = 1
    workers: int = 0
    processes: int = 1


LOADS = {
    "42 tensors, 64 wide": Load(21, 64),
    "24 tensors, 512 wide": Load(12, 512),
    "two trainings in a process": Load(4, 128, trainings=2),
    "a DataLoader with two workers": Load(4, 128, workers=2),
    "eight processes": Load(4, 128, processes=8),
}
BUDGET = Budget(seconds=2.0, least=5)
"""The seconds that a process trains; `least` rounds."""

Figures = dict[str, float]


def measure(load: str, rule: str, threads: int, budget: Budget = BUDGET) -> dict[str, Any]:
    """What is found of each contestant, and how much longer ours takes.

    Returns:
        For each contestant medians over rounds, in microseconds: of the median step
        (`step_us`), of the mean step (`mean_step_us`) and of the median iteration
        (`iteration_us`). `ratios` are isostep's medians by torch's; `paired` is the median of the
        ratios of steps within rounds.
    """
    _together(OURS, LOADS[load], rule, threads, 0.0)  # compiles what is needed
    rounds: dict[str, list[Figures]] = {name: [] for name in CONTESTANTS}
    for number in range(budget.least):
        for name in CONTESTANTS if number % 2 == 0 else reversed(CONTESTANTS):
            rounds[name].append(_together(name, LOADS[load], rule, threads, budget.seconds))
    found: dict[str, Any] = {
        name: {k: statistics.median(f[k] for f in figures) for k in figures[0]}
        for name, figures in rounds.items()
    }
    paired = [a["step_us"] / b["step_us"] for a, b in zip(*rounds.values(), strict=True)]
    ratios = {k: found[OURS][k] / found[THEIRS][k] for k in found[OURS]}
    return found | {"ratios": ratios | {"paired": statistics.median(paired)}}


def _together(name: str, load: Load, rule: str, threads: int, seconds: float) -> Figures:
    """Train in all processes of a load at once; all begin when all are ready."""
    task = asdict(load) | {"name": name, "rule": rule, "threads": threads, "seconds": seconds}
    with ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(load.processes)]
        workers = [stack.enter_context(_Worker(task, log)) for log in logs]
        for worker in workers:
            worker.line()
        for worker in workers:
            worker.begin()
        times = [pair for worker in workers for pair in json.loads(worker.line())]
    steps = [step for _, step in times]
    return {
        "step_us": statistics.median(steps) * 1e6,
        "mean_step_us": statistics.fmean(steps) * 1e6,
        "iteration_us": statistics.median(model + step for model, step in times) * 1e6,
    }


class _Worker:
    """A process that trains, until the end of a `with` block.

    Args:
        task: what `benchmarks.trainee` takes.
        log: gets its stderr.
    """

    def __init__(self, task: dict[str, Any], log: IO[str]) -> None:
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.trainee", json.dumps(task)],
            env=machine.environment(task["threads"], ["torch"], huge_pages=False),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()

    def begin(self) -> None:
        """Let it train."""
        assert self._process.stdin is not None
        self._process.stdin.write("begin\n")
        self._process.stdin.flush()

    def line(self) -> str:
        """The next line that it writes.

        Raises:
            RuntimeError: it ended instead.
        """
        assert self._process.stdout is not None
        found = self._process.stdout.readline()
        if not found:
            self._log.seek(0)
            raise RuntimeError(f"a training ended: {self._log.read()[-2000:]}")
        return found


def table(rows: Sequence[tuple[str, str, Mapping[str, Any]]]) -> Table:
    """Of (load, rule, what `measure` found)."""
    title = "A step in a training loop on a busy machine, us (and its iteration)"
    made = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(("load", "rule", *CONTESTANTS, "step", "iteration")):
        made.add_column(column, justify="right" if number > 1 else "left")
    for load, rule, found in rows:
        made.add_row(load, rule, *texts(found))
    return made


def texts(found: Mapping[str, Any]) -> list[str]:
    """The cells of a row."""
    cells = [f"{found[n]['step_us']:.0f} ({found[n]['iteration_us']:.0f})" for n in CONTESTANTS]
    return [*cells, *(f"{found['ratios'][k]:.2f}x" for k in ("step_us", "iteration_us"))]


def main(
    loads: Annotated[str, typer.Option(help="Numbers of loads, from 0.")] = ",".join(
        str(k) for k in range(len(LOADS))
    ),
    rules: Annotated[str, typer.Option("--rules")] = ",".join(RULES),
    rounds: Annotated[int, typer.Option(min=1)] = BUDGET.least,
    seconds: Annotated[float, typer.Option(help="For each process.")] = BUDGET.seconds,
    threads: Annotated[int | None, typer.Option(min=1, show_default="all cores")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, no table.")] = False,
) -> None:
    """Measure isostep's steps and torch's fused ones in training loops, under load."""
    rows: list[tuple[str, str, Mapping[str, Any]]] = []
    progress = Console(stderr=True)
    for name in [list(LOADS)[int(k)] for k in loads.split(",")]:
        for rule in rules.split(","):
            found = measure(name, rule, threads or machine.cores(), Budget(seconds, rounds))
            rows.append((name, rule, found))
            progress.print(name, rule, *texts(found), highlight=False)
    if as_json:
        documents = [{"load": load, "rule": rule, **found} for load, rule, found in rows]
        print(json.dumps({"machine": machine.describe(), "load": documents}, indent=1))
    else:
        Console(width=None if sys.stdout.isatty() else 130).print(table(rows))


if __name__ == "__main__":
    typer.run(main)
