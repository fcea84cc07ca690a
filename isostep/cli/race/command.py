"""`isostep race`: reads the options, runs the race, shows and writes what came out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isostep.cli.console import as_it_is, fail, print_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from isostep.cli.race.contest import Budget, Contestant
    from isostep.cli.race.results import Standing
    from isostep.cli.race.store import Store
    from isostep.cli.race.task import Task

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def race(
    task: Annotated[
        str, typer.Argument(help="`digits`, or FILE.py:NAME of a task of your own.")
    ] = "digits",
    optimizers: Annotated[
        str | None,
        typer.Option(
            help="Names with commas between, with hyperparameters in brackets where wanted.",
            show_default="every registered rule",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps per run.")] = 400,
    seeds: Annotated[int, typer.Option(help="Runs per learning rate.")] = 3,
    learning_rates: Annotated[
        str,
        typer.Option(help="How many each optimizer tries, or the rates: 0.001,0.01,0.1."),
    ] = "5",
    dialect: Annotated[str, typer.Option(help="How the rules are spelled.")] = "torch",
    out: Annotated[Path, typer.Option(help="Where runs are kept and results go.")] = Path("race"),
    load: Annotated[
        str | None,
        typer.Option(help="Python file or module to import first; may register rules."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, no table.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the kept runs first.")] = False,
) -> None:
    """Race optimizers: one model, one start, an equal budget for each, real data.

    Every optimizer tries the same number of learning rates, each with the same seeds and steps.
    It walks from its own default learning rate towards the best. Finished runs are kept in the
    output folder and not run again, so an interrupted race goes on where it stopped.

    Writes race.png and race.html into the output folder.

    For example:

    - `isostep race`

    - `isostep race --optimizers "AdamW,SGD(momentum=0.9)" --steps 1000`

    - `isostep race my_task.py:task --seeds 5 --out races/mine`
    """
    from isostep.cli.race.contest import Budget
    from isostep.cli.race.contestants import contestants, parse_entries, registered
    from isostep.cli.race.errors import RaceError
    from isostep.cli.race.learning_rates import parse_learning_rates
    from isostep.cli.race.store import Store
    from isostep.cli.race.task import load_module, load_task

    try:
        if load is not None:
            load_module(load)
        chosen = load_task(task)
        budget = Budget(steps, seeds, parse_learning_rates(learning_rates))
        entries = parse_entries(optimizers) if optimizers is not None else registered(dialect)
        entered = contestants(entries, dialect)
        store = Store(out / "runs")
        if fresh:
            store.clear()
        places = _watched_race(chosen, entered, budget, store)
        _show(places, list(entered), chosen.name, dialect, budget, out, as_json)
    except RaceError as error:
        fail(error)


def _watched_race(
    task: "Task", entered: "Mapping[str, Contestant]", budget: "Budget", store: "Store"
) -> "list[Standing]":
    """Run the race in view of the user; Ctrl-C says what is kept and how to go on."""
    from rich.console import Console

    from isostep.cli.race.live import progress_on
    from isostep.cli.race.runner import run_race

    view = progress_on(Console(stderr=True), len(entered), budget)
    try:
        with view:
            return run_race(task, entered, budget, store, view)
    except KeyboardInterrupt:
        typer.echo(
            f"Interrupted: {view.finished} of {view.total} runs are finished and kept in "
            f"{store.directory}. The same command goes on from there.",
            err=True,
        )
        raise typer.Exit(INTERRUPTED) from None


def _show(
    places: "Sequence[Standing]",
    order: "Sequence[str]",
    task: str,
    dialect: str,
    budget: "Budget",
    out: Path,
    as_json: bool,
) -> None:
    """Write the picture and the page; print the table, or the JSON."""
    from rich.console import Console

    from isostep.cli.race.page import write_page
    from isostep.cli.race.picture import write_picture
    from isostep.cli.race.table import race_as_json, table_of
    from isostep.cli.race.wording import terms_text

    title = f"{len(places)} optimizers on {task}"
    write_picture(out / "race.png", title, places, order)
    write_page(out / "race.html", title, terms_text(budget, dialect, places), places, order)
    if as_json:
        print_json(race_as_json(task, dialect, budget, places))
        return
    console = Console()
    console.print(table_of(places, title))
    console.print(
        as_it_is(
            f"{terms_text(budget, dialect, places)}\n"
            f"Pictures: {out / 'race.png'} and {out / 'race.html'}"
        ),
        soft_wrap=True,
    )
