"""`python -m peers`: runs the suites on both sides, compares them, and writes docs/peers.md."""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from peers import justified, kept, page, results, runner
from peers.live import View
from peers.plugin import OURS, THEIRS
from peers.results import Result
from peers.runner import How, Run
from peers.suites import SUITES, Suite

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""
SHOWN = 400
"""Characters of a failure that are shown."""

EXAMPLES = """
Examples:

  python -m peers --only optax

  python -m peers --checkouts ~/checkouts --only torch,timm --keep-theirs

  python -m peers --only keras-jax --tests "test_config and Adam"

  python -m peers --page
"""


def main(
    only: Annotated[
        str | None,
        typer.Option(help=f"Suites, of {', '.join(SUITES)}.", show_default="all"),
    ] = None,
    checkouts: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the frameworks' repositories at the installed versions.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    tests: Annotated[
        str, typer.Option(help="pytest's -k: run these only, and write nothing.")
    ] = "",
    limit: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds that one test may take.", show_default="the suite's"),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at the same time.")] = 1,
    keep_theirs: Annotated[
        bool,
        typer.Option(
            "--keep-theirs",
            help="Take the framework's own outcomes from the last run, if its version and tests "
            "are the same.",
        ),
    ] = False,
    write_page: Annotated[
        bool, typer.Option("--page", help="Run nothing: write docs/peers.md from peers/results.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, no lines.")] = False,
) -> None:
    """Run the frameworks' own tests with their optimizers and with isostep's, and compare.

    Writes peers/results/SUITE.json and docs/peers.md.

    A suite without its checkout is not run. Its last result stays on the page with its day.

    Ctrl-C keeps the suites that are done.

    Exit status: 0 if every difference is justified in peers/justified.toml. 1 if not, or if a suite
    could not run that --only or --checkouts asked for. 2 for wrong options.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends what runs, as Ctrl-C does
    chosen = _chosen(only)
    how = How(tests, limit, jobs)
    listed = justified.load(SUITES)
    view = View(Console(stderr=True))
    found: dict[str, Result] = {}
    missing: dict[str, str] = {}
    interrupted = False
    try:
        for suite in [] if write_page else chosen:
            try:
                result = _run(suite, checkouts, view, how, keep_theirs)
            except FileNotFoundError as error:
                missing[suite.name] = str(error)
                view.say(f"{suite.name}: NOT RUN: {error}")
                continue
            found[suite.name] = results.judged(result, listed)
            if not tests:
                results.write(found[suite.name])
            _tell(found[suite.name], view)
    except KeyboardInterrupt:
        interrupted = True
        view.say("stopped; suites that were done are kept")
    if not tests:
        every = {name: results.read(name) for name in SUITES}
        known = {n: results.judged(r, listed) for n, r in every.items() if r is not None}
        page.write(known)
        found = found or (known if write_page else {})
    if as_json:
        document: dict[str, Any] = {
            name: asdict(r) | {"faults": r.faults} for name, r in found.items()
        }
        sys.stdout.write(json.dumps({"suites": document, "not_run": missing}, indent=1) + "\n")
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    asked_for = only is not None or checkouts is not None
    if any(_faults(r, tests) for r in found.values()) or (missing and asked_for):
        raise typer.Exit(1)


def _chosen(given: str | None) -> list[Suite]:
    names = list(SUITES) if given is None else [n.strip() for n in given.split(",") if n.strip()]
    unknown = [name for name in names if name not in SUITES]
    if unknown or not names:
        typer.echo(f"error: --only {given!r}: choose among {', '.join(SUITES)}", err=True)
        raise typer.Exit(2)
    return [SUITES[name] for name in names]


def _run(
    suite: Suite,
    checkouts: Path | None,
    view: View,
    how: How,
    keep_theirs: bool,
) -> Result:
    begin = time.perf_counter()
    theirs = kept.read(suite, checkouts) if keep_theirs and not how.only else None
    sides: dict[str, Run] = {} if theirs is None else {THEIRS: theirs}
    suite.paths(checkouts)  # a missing checkout is said before anything runs
    for side in (THEIRS, OURS):
        if side not in sides:
            with view.side(f"{suite.name}, {side}") as progress:
                sides[side] = runner.run(suite, side, checkouts, progress, how)
            if side == THEIRS and not how.only:
                kept.write(suite, checkouts, sides[side])
    seconds = time.perf_counter() - begin
    return results.of(suite, checkouts, sides[THEIRS], sides[OURS], seconds)


def _faults(result: Result, tests: str) -> list[str]:
    """With some of the tests only, a listed difference cannot be missed."""
    return [d.test for d in result.unjustified] if tests else result.faults


def _tell(result: Result, view: View) -> None:
    sides = "; ".join(
        f"{side} " + ", ".join(f"{n} {outcome}" for outcome, n in numbers.items())
        for side, numbers in ((THEIRS, result.theirs), (OURS, result.ours))
    )
    view.say(f"{result.suite}: {sides}; {result.touched} use isostep; {result.seconds:.0f} s")
    for difference in result.unjustified:
        view.say(f"  {difference.test}: {difference.theirs}, with isostep {difference.ours}")
        if difference.message:
            view.say("    " + difference.message.strip()[-SHOWN:].replace("\n", "\n    "))
    if result.absent:
        view.say(f"  no file matches {', '.join(result.absent)}")
    for fault in result.faults[len(result.unjustified) :]:
        view.say(f"  {fault}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command(epilog=EXAMPLES)(main)
    app()
