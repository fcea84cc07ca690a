"""What is seen while suites run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from rich import progress
from rich.console import Console
from rich.table import Column

from peers.runner import Progress


class View:
    """Shows one side of a suite at a time.

    Args:
        console: where to; stdout is for results.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str) -> None:
        """Write a line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def side(self, title: str) -> Generator[Progress]:
        """Show a bar until this side is done."""
        bar = progress.Progress(
            progress.TextColumn("{task.description}", table_column=Column(ratio=2)),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.fields[test]}", table_column=Column(ratio=3)),
            console=self.console,
            transient=True,
            expand=True,
            disable=not self.console.is_terminal,
        )
        with bar:
            task = bar.add_task(title, total=None, test="imports")

            def tell(done: int, known: int, now: str) -> None:
                bar.update(task, completed=done, total=known, test=now.rpartition("::")[2])

            yield tell
