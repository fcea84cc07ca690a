"""The command line: `isostep race`, `isostep diff`, `isostep cache`.

The top storey of the house: it uses the library as any user would, and nothing below imports it.
Everything it needs besides isostep itself (typer, rich, matplotlib, plotly, scikit-learn) is the
`cli` extra and is imported only when a command runs.
"""

import sys

from isostep.cli.extra import MissingExtraError, require_extra


def main() -> None:
    """Run the `isostep` command; without the `cli` extra, say how to install it and exit 1."""
    try:
        require_extra()
    except MissingExtraError as error:
        sys.exit(f"isostep: {error}")
    from isostep.cli.app import app

    app()
