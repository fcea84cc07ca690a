"""`python -m benchmarks`: reads the options, runs the workers, shows and writes what came out."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import machine, models, picture, program, runner, startup, tables, targets
from benchmarks.cases import CASES
from benchmarks.live import View
from benchmarks.peers import MODULES
from benchmarks.results import Results
from benchmarks.worker import PARTS, STARTUP, Task

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

LINE = 130
"""Columns of the tables where they are not shown on a terminal."""


def main(
    models_: Annotated[
        str | None,
        typer.Option("--models", help=f"Of {', '.join(models.NAMES)}.", show_default="all large"),
    ] = None,
    rules: Annotated[str, typer.Option(help="Kinds of step.")] = ",".join(CASES),
    peers: Annotated[str, typer.Option(help='Frameworks; "" for none.')] = ",".join(MODULES),
    parts: Annotated[str, typer.Option(help="What is measured.")] = ",".join(PARTS),
    threads: Annotated[
        int | None, typer.Option(min=1, help="For every contestant.", show_default="all cores")
    ] = None,
    huge_pages: Annotated[
        bool, typer.Option("--huge-pages", help="Have glibc ask for huge pages for all peers.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A look in a minute or two.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for cpu.json and cpu.png.")] = Path(
        "benchmarks/results"
    ),
    add: Annotated[
        bool, typer.Option("--add", help="Keep what is in --out and is not measured again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, no tables.")] = False,
) -> None:
    """Measure isostep beside the optimizers of other frameworks, in turns, on this machine.

    Writes cpu.json and cpu.png. Ctrl-C keeps what was measured.
    """
    usual = ["tiny"] if quick else list(models.DEFAULT)
    results = Results(
        models=_chosen("--models", models_, list(models.NAMES), usual),
        cases=_chosen("--rules", rules, list(CASES), []),
        peers=_chosen("--peers", peers, list(MODULES), []),
        threads=threads or machine.cores(),
        huge_pages=huge_pages,
        parts=_chosen("--parts", parts, list(PARTS), []),
    )
    earlier = _earlier(out) if add else None
    interrupted = _measure(results, quick)
    if earlier is not None:
        try:
            results.keep(earlier)
        except ValueError as error:
            typer.echo(f"error: --add: {out / 'cpu.json'} does not fit: {error}", err=True)
            out = out / "apart"
    verdicts = targets.verdicts(results)
    document = results.to_dict() | {"targets": targets.as_records(verdicts)}
    out.mkdir(parents=True, exist_ok=True)
    (out / "cpu.json").write_text(json.dumps(document, indent=1) + "\n")
    picture.write(out / "cpu.png", results)
    if as_json:
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
    else:
        console = Console() if sys.stdout.isatty() else Console(width=LINE)
        tables.show(console, results, verdicts)
        console.print(f"{out / 'cpu.json'} and {out / 'cpu.png'}, {results.seconds:.0f} s")
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def _chosen(option: str, given: str | None, known: list[str], usual: list[str]) -> list[str]:
    if given is None:
        return usual
    names = [name.strip() for name in given.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or (not names and option != "--peers"):
        typer.echo(f"error: {option} {given!r}: choose among {', '.join(known)}", err=True)
        raise typer.Exit(2)
    return names


def _earlier(out: Path) -> Results | None:
    """What an earlier run left, if it was on this machine."""
    path = out / "cpu.json"
    if not path.exists():
        return None
    document = json.loads(path.read_text())
    if document["machine"] != machine.describe():
        typer.echo(f"error: --add: {path} was measured on another machine", err=True)
        raise typer.Exit(2)
    return Results.read(document)


def _measure(results: Results, quick: bool) -> bool:
    """Run all workers; whether the user stopped them."""
    todo = program.tasks(
        results.models,
        results.cases,
        results.peers,
        results.threads,
        parts=results.parts,
        huge_pages=results.huge_pages,
        quick=quick,
    )
    begin = time.perf_counter()
    stopped = False
    startup_too = STARTUP in results.parts
    with View(Console(stderr=True), sum(len(t.cells) for t in todo) + startup_too) as view:
        try:
            if startup_too:
                view.doing("start-up")
                results.startup = startup.measure(3, 1) if quick else startup.measure()
                view.found("start-up", {})
            for task in todo:
                _run(task, results, view)
        except KeyboardInterrupt:
            stopped = True
    results.seconds = time.perf_counter() - begin
    results.load.append(machine.load())
    return stopped


def _run(task: Task, results: Results, view: View) -> None:
    beside = ", ".join(task.peers) or "isostep alone"
    names = [f"{task.kind} ({beside}): {model} {case}" for model, case in task.cells]
    view.doing(names[0])
    found = 0
    for record in runner.records(task):
        results.add(record)
        if "model" in record:
            view.found(names[found], record)
            found += 1
            view.doing(names[min(found, len(names) - 1)])


if __name__ == "__main__":
    typer.run(main)
