"""Running one side of a suite in processes of its own, whatever its tests do to them.

A test that hangs or takes its process down is one outcome; the tests after it run in a new process.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from peers.process import Process
from peers.suites import Suite

RESTARTS = 50
"""Processes for one set of files, after which the rest counts as not run."""


@dataclass
class Outcome:
    """What one test did.

    Args:
        outcome: `passed`, `failed`, `skipped`, `crashed` or `timed out`.
        made, steps: how often isostep's optimizers were made and stepped.
        message: why it failed.
    """

    outcome: str
    made: int = 0
    steps: int = 0
    seconds: float = 0.0
    message: str = ""


@dataclass
class Run:
    """One side of a suite: outcomes by the test's id, and what went wrong outside of tests."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


Progress = Callable[[int, int, str], None]
"""Takes the number of tests done and known, and the test that runs now."""


@dataclass(frozen=True)
class How:
    """How tests are run.

    Args:
        only: pytest's `-k`.
        limit: seconds that one test may take; None: as the suite says.
        jobs: processes at the same time.
    """

    only: str = ""
    limit: float | None = None
    jobs: int = 1


def run(
    suite: Suite,
    side: str,
    checkouts: Path | None,
    progress: Progress = lambda done, known, now: None,
    how: How = How(),
) -> Run:
    """Run a suite's tests with one side's optimizers.

    Args:
        suite: which.
        side: `"theirs"` or `"ours"`.
        checkouts: folder of repositories, for suites that need one.
        progress: is told of every test.
        how: see `How`.

    Raises:
        FileNotFoundError: the tests are not there.
    """
    with tests(suite, checkouts) as (root, paths):
        apart = suite.each_file_apart or how.jobs > 1
        groups = [[path] for path in paths] if apart else [paths]
        running = _Running(suite, side, root, how, progress)
        with ThreadPoolExecutor(how.jobs) as pool:
            try:
                parts = list(pool.map(running.files, groups))
            except BaseException:
                running.stop.set()
                pool.shutdown(cancel_futures=True)
                raise
    outcomes = {test: outcome for part in parts for test, outcome in part.outcomes.items()}
    return Run(outcomes, [error for part in parts for error in part.errors])


@contextlib.contextmanager
def tests(suite: Suite, checkouts: Path | None) -> Generator[tuple[Path, list[str]]]:
    """The folder and the files to run: where they are, or a copy that fits the package."""
    root, paths = suite.root(checkouts), suite.paths(checkouts)
    if suite.convert is None:
        yield root, paths
        return
    with tempfile.TemporaryDirectory(prefix="isostep-peers-") as folder:
        for path in paths:
            copy = Path(folder) / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(suite.convert((root / path).read_text()))
        yield Path(folder), paths


class _Running:
    """One side of a suite while it runs, in one thread for each process.

    Args:
        stop: set, ends all processes.
    """

    def __init__(self, suite: Suite, side: str, root: Path, how: How, progress: Progress) -> None:
        self._suite, self._side, self._root, self._how = suite, side, root, how
        self._progress = progress
        self._done = self._known = 0
        self.stop = Event()

    def files(self, files: list[str]) -> Run:
        """Run some files, in one process after the other until all tests have run."""
        found = Run()
        limit = self._how.limit or self._suite.limit
        for _ in range(RESTARTS):
            before = len(found.outcomes)
            process = Process(self._suite, self._side, self._root, files, list(found.outcomes))
            for record in process.records(self._how.only, limit, self.stop):
                self._take(record, found)
            if process.error:
                found.errors.append(process.error)
            if process.finished or self.stop.is_set() or len(found.outcomes) == before:
                return found
        found.errors.append(f"{', '.join(files)}: gave up after {RESTARTS} processes")
        return found

    def _take(self, record: dict[str, Any], found: Run) -> None:
        if "collected" in record:
            if not found.outcomes:  # a later process has what the first one left
                self._known += record["collected"]
        elif "began" in record:
            self._progress(self._done, max(self._known, self._done), record["began"])
        else:
            test = record.pop("id")
            found.outcomes[test] = Outcome(**record)
            self._done += 1
