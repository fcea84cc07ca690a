"""A state that the framework's own class has saved goes on in isostep's, and back.

Each framework runs in a process of its own; its worker, the module of its name beside this file,
prints how far the parameters end from those of the framework's class alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOLERANCES = {
    "tf_keras": 1e-12,
    "torch": 1e-12,
    "paddle": 1e-12,
    "optax": 1e-12,
    "keras on torch": 1e-12,
    "keras on jax": 1e-12,
    "keras on tensorflow": 1e-12,
}
FLOAT32 = 1e-6
IN_FLOAT32 = {
    "optax": ("adafactor", "adafactor momentum"),
    "keras on torch": ("Adafactor",),
    "keras on jax": ("Adafactor",),
}
"""Whose means Keras computes in float32 whatever the dtype, and optax the decay rate."""


@pytest.mark.parametrize("framework", TOLERANCES)
def test_training_goes_on_in_the_other_class(framework: str) -> None:
    worker, _, backend = framework.partition(" on ")
    for_keras = {"KERAS_BACKEND": backend, "JAX_ENABLE_X64": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"tests.saved_states.{worker}"],
        cwd=Path(__file__).parents[2],
        env=os.environ | (for_keras if backend else {}),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found
    rounded = IN_FLOAT32.get(framework, ())
    apart = {
        case: far
        for case, far in found.items()
        if not far <= (FLOAT32 if case.split(",")[0] in rounded else TOLERANCES[framework])
    }
    assert apart == {}
