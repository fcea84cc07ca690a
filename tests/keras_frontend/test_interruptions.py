"""An exception at any place of an eager step leaves it done or not begun (Keras)."""

from __future__ import annotations

import pytest

from tests import subprocesses
from tests.keras_frontend.test_keras import QUIET


@pytest.mark.fuzz
@pytest.mark.parametrize("backend", ["jax", "tensorflow", "torch"])
def test_an_exception_leaves_a_step_done_or_not_begun(backend: str):
    source = """
import runpy, warnings
warnings.simplefilter("ignore")
runpy.run_module("tests.keras_frontend.interruptions", run_name="__main__")
"""
    assert len(subprocesses.run(source, KERAS_BACKEND=backend, **QUIET)) == 4
