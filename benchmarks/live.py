"""What is seen while a run goes on: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from typing import Any, Self

from rich import progress
from rich.console import Console


class View:
    """Counts cells, in view of the user.

    Args:
        console: where to; stdout is for results.
        total: the number of cells.
    """

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total, self.done = console, total, 0
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def doing(self, what: str) -> None:
        """Say what is measured now."""
        self._bar.update(self._task, description=what)

    def found(self, what: str, record: dict[str, Any]) -> None:
        """Count a cell and, where there is no bar, write its medians."""
        self.done += 1
        self._bar.update(self._task, completed=self.done)
        if self.console.is_terminal:
            return
        times = record.get("times", {})
        said = ", ".join(f"{name} {t['median_ms']:.3g} ms" for name, t in times.items())
        said = said or str(record.get("error", ""))
        self.console.print(
            f"[{self.done}/{self.total}] {what}  {said}".rstrip(),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
