"""An exception at any place of a step leaves it done or not begun (Keras on torch)."""

from __future__ import annotations

from tests import subprocesses
from tests.keras_frontend.test_keras import QUIET


def test_an_exception_leaves_a_step_done_or_not_begun():
    source = """
import runpy, warnings
warnings.simplefilter("ignore")
runpy.run_module("tests.keras_frontend.interruptions", run_name="__main__")
"""
    assert len(subprocesses.run(source, KERAS_BACKEND="torch", **QUIET)) == 4
