"""Running workers one after the other, and reading what they find."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from benchmarks import machine
from benchmarks.worker import Task


def records(task: Task) -> Iterator[dict[str, Any]]:
    """What the worker of `task` prints, as it comes.

    A worker that dies leaves one more record: its error, with the end of what it wrote to stderr.
    Leaving this generator early ends the worker.
    """
    command = [sys.executable, "-m", "benchmarks.worker", task.to_json()]
    with tempfile.TemporaryFile("w+") as log:
        worker = subprocess.Popen(
            command,
            env=machine.environment(task.threads, task.peers, task.huge_pages),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C is ours to handle
        )
        try:
            assert worker.stdout is not None
            for line in worker.stdout:
                yield json.loads(line)
            if worker.wait() != 0:
                log.seek(0)
                yield {"kind": task.kind, "error": _last_words(log.read(), worker.returncode)}
        finally:
            worker.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(5)
            worker.kill()
            worker.wait()


def _last_words(text: str, status: int) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return f"worker ended with status {status}: {lines[-1] if lines else 'nothing on stderr'}"
