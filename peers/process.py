"""One process of pytest, watched from outside.

The plugin writes down each test as it begins and ends, so that a process that hangs or dies leaves
what it has done, and the test that it was at.
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
from collections.abc import Iterator, Sequence
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
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2", "MPLBACKEND": "agg"}
DEFAULTS = {"OMP_NUM_THREADS": "1", "TF_NUM_INTEROP_THREADS": "16"}
"""Variables for who has not set them. Tensors in tests are small: threads only slow them. But the
replicas of TensorFlow's strategies wait for each other, and each needs a thread."""


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


class Process:
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

    def records(self, only: str, limit: float, stop: Event) -> Iterator[dict[str, Any]]:
        """What the plugin writes, as it comes, and an outcome for a test that ended the process.

        Leaving this generator early ends the process and all that it has started.
        """
        with tempfile.TemporaryDirectory(prefix="isostep-peers-") as folder:
            record, log, skip = (Path(folder) / name for name in ("record", "log", "skip"))
            record.touch()
            skip.write_text("\n".join(self._done))
            with log.open("w") as written:
                chosen = ["-k", only] if only else []
                process = subprocess.Popen(
                    [*self._command, *chosen, "--record", str(record), "--skip-ids", str(skip)],
                    cwd=folder,
                    env=environment(self._suite, self._root),
                    stdin=subprocess.DEVNULL,
                    stdout=written,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is ours to handle; it ends the whole group
                )
            try:
                with record.open() as lines:
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
