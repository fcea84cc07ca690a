"""`isostep cache`: what is kept of compiled kernels, where, and filling it before it is needed."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isostep.cli.console import as_it_is, fail, print_json

if TYPE_CHECKING:
    from isostep.cli.warm import Warmed

cache = typer.Typer(invoke_without_command=True, rich_markup_mode="markdown")

_JSON = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@cache.callback()
def show(context: typer.Context, as_json: _JSON = False) -> None:
    """Show where compiled kernels are kept: path, entries, size.

    The first directory that can be written is filled; all are read, unless others could have
    written them. `ISOSTEP_CACHE_DIR` chooses it, `ISOSTEP_CACHE_PATH` adds directories that are
    only read, `ISOSTEP_CACHE_SIZE` (such as 100M) bounds it: what was not used for longest goes
    first.

    For example:

    - `isostep cache --json`

    - `isostep cache clear`

    - `isostep cache warm model.py:build --optimizer adafactor`
    """
    if context.invoked_subcommand is not None:
        return
    from isostep.compile import cache as kernels
    from isostep.compile import room

    rows = [_row(path, "kept here") for path in kernels.own()]
    rows += [_row(path, "only read") for path in kernels.shared()]
    if as_json:
        print_json({"directories": rows, "limit": room.limit()})
        return
    _print_table(rows, f"Compiled kernels, at most {_size(room.limit())}")


@cache.command()
def clear(as_json: _JSON = False) -> None:
    """Delete the kernels that are kept; directories that are only read stay as they are.

    Running processes are not disturbed.
    """
    from isostep.compile import cache as kernels
    from isostep.compile import room
    from isostep.compile.trust import UntrustedError, opened

    rows: list[dict[str, Any]] = []
    for path in kernels.own():
        try:
            with opened(path) as found:
                gone = room.clear(found)
        except FileNotFoundError:
            continue
        except (OSError, UntrustedError) as error:
            fail(f"{path} is not cleared: {error}")
        sizes = sum(entry.bytes for entry in gone)
        rows.append({"path": str(path), "entries": len(gone), "bytes": sizes})
    if as_json:
        print_json({"cleared": rows})
        return
    for row in rows:
        typer.echo(f"{row['path']}: deleted {row['entries']} entries, {_size(row['bytes'])}")
    if not rows:
        typer.echo("there is nothing to delete")


@cache.command()
def warm(
    model: Annotated[
        str,
        typer.Argument(help="FILE.py:NAME or module:NAME of a function that returns parameters."),
    ],
    optimizer: Annotated[
        str, typer.Option(help="A name, with hyperparameters in brackets where wanted.")
    ],
    as_json: _JSON = False,
) -> None:
    """Compile the kernels of a model and an optimizer, as when an image is built.

    The function returns a torch module, or NumPy arrays in (nested) dicts and lists; they are
    stepped once, with gradients of zeros. Kernels differ with the hyperparameters that select code
    (a momentum, Nesterov's): give them as the training does.

    Machine code is made for this kind of processor: build on one like those that it will run on.

    For example:

    - `isostep cache warm model.py:build --optimizer adafactor`

    - `isostep cache warm model.py:build --optimizer "SGD(momentum=0.9, nesterov=True)"`
    """
    from isostep.cli.race.errors import RaceError
    from isostep.cli.warm import WarmError, warmed

    try:
        done = warmed(model, optimizer)
    except (RaceError, WarmError) as error:
        fail(error)
    if done.lost:
        fail(
            f"{done.lost} of {done.kernels} kernels could not be kept in {done.path}: "
            "see `isostep cache`"
        )
    _report(done, as_json)


def _report(done: "Warmed", as_json: bool) -> None:
    if as_json:
        print_json(vars(done))
        return
    typer.echo(
        f"{done.path}: {done.kernels} kernels, {done.compiled} of them compiled now "
        f"({', '.join(done.ran)})"
    )


def _row(path: Path, use: str) -> dict[str, Any]:
    from isostep.compile import room
    from isostep.compile.trust import UntrustedError, opened

    row = {"path": str(path), "use": use, "entries": 0, "bytes": 0}
    try:
        with opened(path) as found:
            held = room.entries(found)
    except FileNotFoundError:
        return row | {"use": f"{use}, once there is something"} if use == "kept here" else row
    except UntrustedError as error:
        return row | {"use": f"refused: {error}"}
    except OSError as error:
        return row | {"use": f"refused: {os.strerror(error.errno or 0)}"}
    return row | {"entries": len(held), "bytes": sum(entry.bytes for entry in held)}


def _print_table(rows: list[dict[str, Any]], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=as_it_is(title), box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("path", overflow="fold")
    table.add_column("entries", justify="right")
    table.add_column("size", justify="right")
    table.add_column("use", overflow="fold")
    for row in rows:
        cells = (row["path"], str(row["entries"]), _size(row["bytes"]), row["use"])
        table.add_row(*map(as_it_is, cells))
    Console().print(table)


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"
