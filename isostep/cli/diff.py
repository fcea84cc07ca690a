"""`isostep diff RULE DIALECT_A DIALECT_B`: what differs between two spellings of one rule."""

from typing import Annotated

import typer

from isostep.cli.console import as_it_is, fail, print_json


def diff(
    rule: Annotated[str, typer.Argument(help="Name of the rule, such as AdamW.")],
    dialect_a: Annotated[str, typer.Argument(help="First dialect, such as torch.")],
    dialect_b: Annotated[str, typer.Argument(help="Second dialect, such as keras.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show what differs between two dialects of a rule: names, defaults, formulas, quirks.

    For example:

    - `isostep diff AdamW torch keras`

    - `isostep diff RMSprop torch tf_keras --json`
    """
    from isostep import dialects

    try:
        difference = dialects.difference(rule, dialect_a, dialect_b)
    except ValueError as error:
        fail(error)
    if as_json:
        print_json([dict(zip(difference.columns, row, strict=True)) for row in difference.rows])
        return

    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=as_it_is(difference.title), box=box.SIMPLE_HEAD, title_justify="left")
    for column in difference.columns:
        table.add_column(as_it_is(column), overflow="fold")
    for row in difference.rows:
        table.add_row(*map(as_it_is, row))
    same = as_it_is(f"{difference.title}: no difference")
    Console().print(table if difference.rows else same)
