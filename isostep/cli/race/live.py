"""What is seen while a race goes on: a progress bar over the standings so far, or plain lines."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from isostep.cli.console import as_it_is
from isostep.cli.race.contest import Budget, Observer
from isostep.cli.race.results import Run, Standing, Trial
from isostep.cli.race.table import table_of
from isostep.cli.race.wording import rate_text, trial_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live


class Progress(Observer):
    """Counts runs; the base of both views.

    Args:
        console: where to write; the race writes to stderr, so that stdout holds results only.
        contestants: how many race.
        budget: what each may spend.
    """

    def __init__(self, console: "Console", contestants: int, budget: Budget) -> None:
        self.console = console
        self.total = contestants * budget.runs
        self.steps = budget.steps
        self.finished = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the console as it was."""

    def run_finished(self, run: Run) -> None:
        """Count a run."""
        self.finished += 1


class PlainProgress(Progress):
    """A line for each learning rate tried: for logs, pipes and screens that cannot be redrawn."""

    def trial_finished(self, label: str, trial: Trial, so_far: Sequence[Standing]) -> None:
        """Write what the trial came to."""
        width = len(str(self.total))
        count = f"[{self.finished:{width}}/{self.total}]"
        line = f"{count} {label} lr={rate_text(trial.learning_rate)}: {trial_text(trial)}"
        self.console.print(as_it_is(line), soft_wrap=True)


class LiveProgress(Progress):
    """A bar of all runs with the time left, and the standings so far, redrawn in place."""

    def __init__(self, console: "Console", contestants: int, budget: Budget) -> None:
        super().__init__(console, contestants, budget)
        from rich import progress

        self.bar = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=console,
        )
        self.race = self.bar.add_task("race", total=self.total * self.steps)
        self.live: Live | None = None

    def run_started(self, label: str, learning_rate: float, seed: int) -> None:
        """Say which run is on; the first that trains opens the display."""
        from rich.live import Live

        what = f"{label} lr={rate_text(learning_rate)} seed={seed}"
        self.bar.update(self.race, description=what)
        if self.live is None:
            self.live = Live(self.bar, console=self.console, transient=True)
            self.live.start()

    def run_reached(self, step: int) -> None:
        """Move the bar within the run."""
        self.bar.update(self.race, completed=self.finished * self.steps + step)

    def run_finished(self, run: Run) -> None:
        """Move the bar to the end of the run."""
        super().run_finished(run)
        self.bar.update(self.race, completed=self.finished * self.steps)

    def trial_finished(self, label: str, trial: Trial, so_far: Sequence[Standing]) -> None:
        """Redraw the standings."""
        from rich.console import Group

        if self.live is not None:
            self.live.update(Group(table_of(so_far), self.bar))

    def __exit__(self, *exception: object) -> None:
        """Take the display away; the final table comes after."""
        if self.live is not None:
            self.live.stop()


def progress_on(console: "Console", contestants: int, budget: Budget) -> Progress:
    """Return the view that fits `console`: live on a terminal, plain lines elsewhere.

    The race runs inside it: `with view: run_race(..., view)`.
    """
    view = LiveProgress if console.is_terminal else PlainProgress
    return view(console, contestants, budget)
