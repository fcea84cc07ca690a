"""Python threads that step one optimizer take turns (Keras on torch)."""

from __future__ import annotations

from tests import subprocesses
from tests.keras_frontend.test_keras import QUIET


def test_threads_that_step_one_optimizer_take_turns() -> None:
    source = """
import runpy, warnings
warnings.simplefilter("ignore")
runpy.run_module("tests.keras_frontend.threads", run_name="__main__")
"""
    assert len(subprocesses.run(source, KERAS_BACKEND="torch", **QUIET)) == 4
