"""Running Python in processes of their own: what is imported, cached or forked shows only there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PATIENCE = 900.0
"""Seconds that a process may take."""


def start(source: str, *, warnings: str = "error", **environment: str) -> subprocess.Popen[str]:
    """Start a process.

    Args:
        source: what it runs.
        warnings: what becomes of them.
        **environment: what differs from the environment here; empty: not there.
    """
    given = {**os.environ, **environment}
    return subprocess.Popen(
        [sys.executable, "-W", warnings, "-c", source],
        env={name: value for name, value in given.items() if value},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(processes: Collection[subprocess.Popen[str]]) -> list[Any]:
    """The last line that each prints, read as JSON. None runs afterwards, and no pipe is open.

    Raises:
        AssertionError: one failed; the others were ended.
        subprocess.TimeoutExpired: one did not end in time.
    """
    with ExitStack() as stack:
        for process in processes:
            stack.enter_context(process)
            stack.callback(process.kill)
        return [_result(process) for process in processes]


def _result(process: subprocess.Popen[str]) -> Any:
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def run(source: str, **environment: str) -> Any:
    return results([start(source, **environment)])[0]
