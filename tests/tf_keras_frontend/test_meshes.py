"""Steps on meshes give the numbers of one device: every rule, option and placement."""

from __future__ import annotations

from typing import Any

import pytest

from tests import subprocesses

# Distances are of float64 numbers that were added up in another order.
CLOSE = 1e-13
# Rules, options eagerly and in tf.function, and placements of ranks 0 to 4.
CASES = {1: 7 * (8 + 8) * (1 + 2 + 3 + 4 + 5), 2: 7 * (8 + 2) * (1 + 3 + 7 + 13 + 21)}
# On two axes making all programs takes minutes: `meshes 2 all` does.
COMPILED = {1: "all", 2: "clipnorm,overwriting"}
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
# A program of a mesh waits for a thread on each device: on few cores there are too few of them.
THREADS = {"TF_NUM_INTEROP_THREADS": "16"}
SOURCE = """
import runpy, sys, warnings
warnings.simplefilter("ignore")
sys.argv = ["meshes", "{axes}", "{compiled}", *{rules!r}]
runpy.run_module("tests.tf_keras_frontend.meshes", run_name="__main__")
"""
HALVES = (["Adafactor"], ["SGD", "Adagrad", "RMSprop", "Adadelta", "Adam", "AdamW"])


@pytest.mark.parametrize("axes", CASES)
def test_every_placement_gives_the_numbers_of_one_device(axes: int) -> None:
    processes = [
        subprocesses.start(
            SOURCE.format(axes=axes, compiled=COMPILED[axes], rules=rules), **QUIET, **THREADS
        )
        for rules in HALVES
    ]
    halves: list[Any] = subprocesses.results(processes)
    found = {case: apart for half in halves for case, apart in half["found"].items()}
    assert sum(half["cases"] for half in halves) == CASES[axes]
    assert min(half["moved"] for half in halves) > 1e-3
    assert {case: apart for case, apart in found.items() if not apart < CLOSE} == {}
