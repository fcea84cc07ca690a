"""A state that the framework's own class has saved goes on in isostep's, and back.

Each framework runs in a process of its own; its worker, the module of its name beside this file,
prints how far the parameters end from those of the framework's class alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOLERANCES = {
    "torch": 1e-12,
    "paddle": 1e-12,
}


@pytest.mark.parametrize("framework", TOLERANCES)
def test_training_goes_on_in_the_other_class(framework: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"tests.saved_states.{framework}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found
    assert {c: far for c, far in found.items() if not far <= TOLERANCES[framework]} == {}
