"""isostep.paddle, each part in a process of its own: Paddle does not share one with others.

The parts are pytest modules themselves, `check_*.py` beside this file.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PARTS = sorted(path.stem for path in HERE.glob("check_*.py"))
LONGER = "check_interruptions"  # under `make fuzz`


@pytest.mark.parametrize(
    "part", [pytest.param(p, marks=[pytest.mark.fuzz] * (p == LONGER)) for p in PARTS]
)
def test_paddle(part: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, "-W", "ignore", f"{HERE / part}.py"],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_the_example_goes_on_in_paddle() -> None:
    example = HERE.parents[1] / "examples" / "paddle_adamw.py"
    source = f"import runpy; print(runpy.run_path({str(example)!r})['main']())"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", source],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert float(done.stdout.splitlines()[-1]) < 1e-6
