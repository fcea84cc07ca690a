"""The first step of isostep.torch without a kernel on disk: kernels, processor and wall time.

`python -m benchmarks.cold --before CHECKOUT` measures another checkout of isostep in turns with
this one.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import machine, models
from benchmarks.timing import Budget

HERE = Path(__file__).parent.parent
RULES = ("AdamW", "Adafactor")
NOW, BEFORE = "now", "before"
COLUMNS = {
    "kernels": "kernels",
    "cpu_s": "CPU, s",
    "wall_s": "first step, s",
    "ready_s": "all compiled, s",
    "warm_ms": "first step, kernels on disk, ms",
    "steady_ms": "later steps, ms",
}
"""What is found of a model and a rule, and how tables call it."""

BUDGET = Budget(seconds=2.0, least=3, most=500)
"""The seconds and the number of steps in a process that finds its kernels; `least` rounds."""

Figures = dict[str, float]


def measure(
    model: str,
    rule: str,
    threads: int,
    budget: Budget = BUDGET,
    checkouts: Mapping[str, Path] = {NOW: HERE},
) -> dict[str, Figures]:
    """The medians of `budget.least` rounds, by the names of the checkouts.

    In each round each checkout has a process with an empty cache and one that finds its kernels;
    every other round goes through the checkouts in the opposite order.
    """
    rounds: dict[str, list[Figures]] = {name: [] for name in checkouts}
    for number in range(budget.least):
        order = list(checkouts)
        for name in order if number % 2 == 0 else reversed(order):
            rounds[name].append(_round(model, rule, threads, budget, checkouts[name]))
    return {name: _medians(found) for name, found in rounds.items()}


def _medians(rounds: list[Figures]) -> Figures:
    return {name: statistics.median(found[name] for found in rounds) for name in COLUMNS}


def _round(model: str, rule: str, threads: int, budget: Budget, checkout: Path) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        cold = _process(model, rule, threads, (0.0, 0), checkout, folder)
        warm = _process(model, rule, threads, (budget.seconds, budget.most), checkout, folder)
    return {
        "kernels": cold["kernels"],
        "cpu_s": cold["cpu"],
        "wall_s": cold["wall"],
        "ready_s": cold["ready"],
        "warm_ms": warm["wall"] * 1e3,
        "steady_ms": warm["steady"] * 1e3,
    }


def _process(
    model: str, rule: str, threads: int, later: tuple[float, int], checkout: Path, folder: str
) -> dict[str, Any]:
    environment = machine.environment(threads, ["torch"], huge_pages=False)
    environment |= {"ISOSTEP_CACHE_DIR": folder, "PYTHONPATH": str(checkout)}
    environment.pop("ISOSTEP_CACHE_PATH", None)
    seconds, steps = later
    task = {
        "rule": rule,
        "shapes": models.get(model).shapes,
        "threads": threads,
        "seconds": seconds,
        "steps": steps,
    }
    done = subprocess.run(
        [sys.executable, "-P", str(HERE / "benchmarks" / "fresh_process.py")],
        input=json.dumps(task),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{model}, {rule}, {checkout}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    if not os.path.samefile(found.pop("isostep"), checkout):
        raise RuntimeError(f"the isostep of {checkout} is hidden by another one")
    return found


def texts(found: Mapping[str, Figures]) -> list[str]:
    """The cells of a row; before and now, where there are both."""
    known = [found[name] for name in (BEFORE, NOW) if name in found]
    return [" -> ".join(_digits(name, f[name]) for f in known) for name in COLUMNS]


def _digits(name: str, value: float) -> str:
    if name == "kernels" or value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if name.endswith("_s") else f"{value:.3g}"


def table(rows: Sequence[tuple[str, str, Mapping[str, Figures]]]) -> Table:
    """Of (model, rule, what `measure` found)."""
    title = "The first step of isostep.torch, nothing compiled"
    made = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(("model", "rule", *COLUMNS.values())):
        made.add_column(column, justify="right" if number > 1 else "left")
    for model, rule, found in rows:
        made.add_row(model, rule, *texts(found))
    return made


def main(
    before: Annotated[Path | None, typer.Option(help="A checkout to compare with.")] = None,
    chosen: Annotated[str, typer.Option("--models")] = ",".join(models.COLD),
    rules: Annotated[str, typer.Option("--rules")] = ",".join(RULES),
    rounds: Annotated[int, typer.Option(min=1, help="Processes of each kind.")] = BUDGET.least,
    threads: Annotated[int | None, typer.Option(min=1, show_default="all cores")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, no table.")] = False,
) -> None:
    """Measure first steps in fresh processes, of this checkout and of another one in turns."""
    checkouts = {NOW: HERE} if before is None else {BEFORE: before.resolve(), NOW: HERE}
    budget = Budget(BUDGET.seconds, rounds, BUDGET.most)
    rows: list[tuple[str, str, Mapping[str, Figures]]] = []
    progress = Console(stderr=True)
    for model in chosen.split(","):
        for rule in rules.split(","):
            found = measure(model, rule, threads or machine.cores(), budget, checkouts)
            rows.append((model, rule, found))
            progress.print(model, rule, *texts(found), highlight=False)
    if as_json:
        documents = [{"model": m, "rule": r, **found} for m, r, found in rows]
        print(json.dumps({"machine": machine.describe(), "cold": documents}, indent=1))
    else:
        Console(width=None if sys.stdout.isatty() else 150).print(table(rows))


if __name__ == "__main__":
    typer.run(main)
