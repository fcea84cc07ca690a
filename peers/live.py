"""What is seen while suites run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from rich import progress
from rich.console import Console
from rich.table import Column

from peers.runner import Progress

QUIET = 60.0
"""Seconds between two lines about a suite, where there is no bar."""


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

            said = time.monotonic()

            def tell(done: int, known: int, now: str) -> None:
                nonlocal said
                bar.update(task, completed=done, total=known, test=now.rpartition("::")[2])
                if not self.console.is_terminal and time.monotonic() - said > QUIET:
                    said = time.monotonic()
                    self.say(f"{title}: {done} of {known}, {now}")

            yield tell
