"""What users do to an optimizer, its variables and their memory between two steps."""

from __future__ import annotations

import pytest

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


COARSE = {"gradient in float16": 4 * 2.0**-11, "slot in bfloat16": 4 * 2.0**-8}
"""Where Keras rounds to a coarse dtype on the way: a few units in the last place, around 1."""
FREER = {"gradient of NumPy", "gradient that fits by broadcast"}
"""What isostep takes and Keras does not on every backend."""
STRICTER = {"too few weights set", "state loaded, too short"}
"""What Keras takes or passes over, and isostep refuses."""
GOES_ON = {"deep copy"}
"""A copy has no variables yet: Keras' begins anew, isostep's has the state once it has them."""


@pytest.mark.parametrize("backend", ["jax", "tensorflow", "torch"])
def test_settings_variables_and_state_that_change_are_followed_or_refused(backend: str):
    source = """
import runpy, warnings
warnings.simplefilter("ignore")
runpy.run_module("tests.keras_frontend.settings", run_name="__main__")
"""
    table = subprocesses.run(source, KERAS_BACKEND=backend, **QUIET)
    assert len(table) > 45
    for what, found in table.items():
        name = what.split(", ", 1)[1].removesuffix(", compiled")
        theirs, ours = found["theirs"]["raised"], found["ours"]["raised"]
        assert found["ours"]["changed"] == [], what
        if name in STRICTER:
            assert ours[0].startswith("StateError"), what
        elif name not in FREER | GOES_ON:
            assert len(theirs) == len(ours), (what, found)
            assert ours or found["far"] <= COARSE.get(name, ROUNDING), (what, found)
