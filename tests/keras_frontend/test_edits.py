"""What users do to variables and slots between two steps, on Keras' torch backend."""

from __future__ import annotations

from tests import subprocesses
from tests.keras_frontend.test_keras import QUIET

ROUNDING = 2e-6
"""Of four steps in float32, in values of about 1: a few units in the last place each."""


def test_an_edit_between_two_steps_is_followed_as_keras_does():
    source = """
import runpy, warnings
warnings.simplefilter("ignore")
runpy.run_module("tests.keras_frontend.edits", run_name="__main__")
"""
    found = subprocesses.run(source, KERAS_BACKEND="torch", **QUIET)
    table = found["table"]
    assert len(table) == 60
    assert {k: v for k, v in table.items() if isinstance(v[0], str) or v[0] > ROUNDING} == {}
    array_code = {k.split(", ", 1)[1] for k, (_, ran) in table.items() if "native" not in ran[0]}
    assert array_code <= {"transposed, variable", "transposed, slot", "strided, slot"}
    refused, count, after = found["freed"]
    assert "storage" in refused
    assert (count, after) == (1, 2)
    untouched, far = found["by values"]
    assert untouched
    assert far <= ROUNDING
