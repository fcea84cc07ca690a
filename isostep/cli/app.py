"""The `isostep` command: one registration per subcommand and nothing else."""

import typer

from isostep.cli.cache import cache
from isostep.cli.diff import diff
from isostep.cli.race.command import race

app = typer.Typer(
    name="isostep",
    help="Deep-learning optimizers, written once: the same step everywhere.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.callback()
def _isostep() -> None:
    """Keep `isostep COMMAND` a group of commands, however few are registered."""


app.command("race")(race)
app.command("diff")(diff)
app.add_typer(cache, name="cache")
