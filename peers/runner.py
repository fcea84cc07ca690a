"""Running one side of a suite in processes of its own, whatever its tests do to them.

A test that hangs or takes its process down is one outcome; the tests after it run in a new process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from peers.suites import APART, Suite

REPOSITORY = Path(__file__).resolve().parent.parent
CHILDREN = Path(__file__).resolve().parent / "children"
"""What the processes that tests start need."""
POLL = 0.1
"""Seconds between two looks at what a process has written."""
OUTSIDE_LIMIT = 300.0
"""Seconds for imports and collection, and for the end of a process."""
CRASHED, TOO_LONG = "crashed", "timed out"
FINISHED = (0, 1, 2, 5)
"""pytest's statuses: all passed; some failed; a file could not be imported; nothing collected."""
RESTARTS = 50
"""Processes for one set of files, after which the rest counts as not run."""
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2", "MPLBACKEND": "agg"}
DEFAULTS = {"OMP_NUM_THREADS": "1", "TF_NUM_INTEROP_THREADS": "16"}
"""Variables for who has not set them. Tensors in tests are small: threads only slow them. But the
replicas of TensorFlow's strategies wait for each other, and each needs a thread."""


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
        for _ in range(RESTARTS):
            before = len(found.outcomes)
            process = _Process(self._suite, self._side, self._root, files, list(found.outcomes))
            for record in process.records(self._how, self.stop):
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


def command(suite: Suite, side: str, root: Path, files: Sequence[str]) -> list[str]:
    """The command that runs tests of a suite by hand, but for its environment."""
    options = ["-p", "peers.plugin", "--peer", suite.peer, "--side", side]
    house = ["-c", os.devnull, "--rootdir", str(root), "-p", "no:cacheprovider", "-q"]
    house.append("--continue-on-collection-errors")
    return [
        sys.executable,
        "-m",
        "pytest",
        *options,
        *house,
        *suite.arguments,
        *(str(root / f) for f in files),
    ]


def environment(suite: Suite, root: Path) -> dict[str, str]:
    """The variables that a suite's process needs, and those of this process."""
    folders = [CHILDREN, REPOSITORY, *([APART] if suite.apart else [])]
    folders += [root / suite.helpers] if suite.helpers else []
    path = os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**DEFAULTS, **os.environ, **ENVIRONMENT, **suite.environment, "PYTHONPATH": path}


class _Process:
    """One process of pytest over some files.

    Args:
        done: ids of tests to leave out.
    """

    def __init__(
        self, suite: Suite, side: str, root: Path, files: list[str], done: list[str]
    ) -> None:
        self._suite, self._root, self._done = suite, root, done
        self._command = command(suite, side, root, files)
        self.finished, self.error = False, ""

    def records(self, how: How, stop: Event) -> Iterator[dict[str, Any]]:
        """What the plugin writes, as it comes, and an outcome for a test that ended the process.

        Leaving this generator early ends the process and all that it has started.
        """
        with tempfile.TemporaryDirectory(prefix="isostep-peers-") as folder:
            record, log, skip = (Path(folder) / name for name in ("record", "log", "skip"))
            record.touch()
            skip.write_text("\n".join(self._done))
            with log.open("w") as written:
                only = ["-k", how.only] if how.only else []
                process = subprocess.Popen(
                    [*self._command, *only, "--record", str(record), "--skip-ids", str(skip)],
                    cwd=folder,
                    env=environment(self._suite, self._root),
                    stdin=subprocess.DEVNULL,
                    stdout=written,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is ours to handle; it ends the whole group
                )
            try:
                with record.open() as lines:
                    limit = how.limit or self._suite.limit
                    yield from self._watched(process, lines, log, limit, stop)
            finally:
                _end(process)

    def _watched(
        self,
        process: subprocess.Popen[bytes],
        lines: Any,
        log: Path,
        limit: float,
        stop: Event,
    ) -> Iterator[dict[str, Any]]:
        running, since = "", time.monotonic()
        while not stop.is_set():
            status = process.poll()
            for line in _whole_lines(lines):
                found = json.loads(line)
                running = found.get("began", "")
                since = time.monotonic()
                yield found
            if status is not None:
                yield from self._ended(status, running, log)
                return
            allowed = limit if running else OUTSIDE_LIMIT
            if time.monotonic() - since > allowed:
                yield from self._lost(running, TOO_LONG, f"no end within {allowed:.0f} s")
                return
            time.sleep(POLL)

    def _ended(self, status: int, running: str, log: Path) -> Iterator[dict[str, Any]]:
        if running:
            yield from self._lost(running, CRASHED, _last_words(log, status))
        elif status in FINISHED:
            self.finished = True
        else:
            self.error = _last_words(log, status)

    def _lost(self, running: str, outcome: str, message: str) -> Iterator[dict[str, Any]]:
        if running:
            yield {"id": running, "outcome": outcome, "message": message}
        else:
            self.error = f"{outcome} outside of tests: {message}"


def _whole_lines(lines: Any) -> Iterator[str]:
    """Lines that are complete; a part of one stays for later."""
    while True:
        place = lines.tell()
        line = lines.readline()
        if not line.endswith("\n"):
            lines.seek(place)
            return
        yield line


def _last_words(log: Path, status: int) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"ended with status {status}: " + "\n".join(lines[-15:])


def _end(process: subprocess.Popen[bytes]) -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
