"""What every command says in the same way: results on stdout, all else on stderr."""

import json
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.text import Text


def as_it_is(text: str) -> "Text":
    """Return text for rich in which brackets are no markup and colons no emoji: names may have
    both."""
    from rich.text import Text

    return Text(text)


def print_json(value: Any) -> None:
    """Write one JSON document to stdout; NaN and infinity are refused, as JSON has neither."""
    json.dump(value, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def fail(message: object) -> NoReturn:
    """Write `error: message` to stderr and leave with exit status 2, as for a wrong option."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)
