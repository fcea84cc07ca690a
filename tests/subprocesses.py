"""Running Python in processes of their own: what is imported, cached or forked shows only there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


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


def result(process: subprocess.Popen[str]) -> Any:
    """The last line that it prints, read as JSON."""
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def run(source: str, **environment: str) -> Any:
    return result(start(source, **environment))
