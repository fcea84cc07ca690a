"""What every command says in the same way: results on stdout, all else on stderr."""

import json
import sys
from typing import Any, NoReturn

import typer


def print_json(value: Any) -> None:
    """Write one JSON document to stdout; NaN and infinity are refused, as JSON has neither."""
    json.dump(value, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def fail(message: object) -> NoReturn:
    """Write `error: message` to stderr and leave with exit status 2, as for a wrong option."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)
