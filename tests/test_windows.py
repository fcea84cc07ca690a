"""A simulated Windows: see `windows.py`."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from .subprocesses import ROOT


@pytest.mark.skipif(sys.platform != "linux", reason="what others lack is taken from Linux")
@pytest.mark.parametrize(
    ("file", "choice", "least"),
    [
        ("tests/on_windows.py", "test", 14),
        ("tests/test_against_oracle.py", "native and float32_is and adafactor", 5),
    ],
)
def test_as_on_windows(file: str, choice: str, least: int) -> None:
    """No fork, no POSIX, no OpenMP runtime, and no file that is open can be replaced."""
    python = [sys.executable, "-X", "warn_default_encoding", "-W", "ignore::EncodingWarning"]
    plugins = ["-p", "no:xdist", "-p", "no:cacheprovider", "-p", "tests.windows"]
    done = subprocess.run(
        [*python, "-m", "pytest", *plugins, file, "-k", choice],
        env=os.environ | {"PROCESSOR_ARCHITECTURE": "AMD64", "OMP_NUM_THREADS": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= least  # type: ignore[index]
