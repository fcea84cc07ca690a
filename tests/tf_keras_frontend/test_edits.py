"""What users do to an optimizer of tf_keras between two steps is followed, or refused."""

from __future__ import annotations

from tests import subprocesses
from tests.keras_frontend.test_edits import ROUNDING
from tests.keras_frontend.test_keras import QUIET


def test_an_edit_between_two_steps_is_followed_as_tf_keras_does() -> None:
    source = """
import runpy, warnings
warnings.simplefilter("ignore")
runpy.run_module("tests.tf_keras_frontend.edits", run_name="__main__")
"""
    table = subprocesses.run(source, **QUIET)
    assert len(table) == 31
    for what, found in table.items():
        theirs, ours = found["theirs"]["raised"], found["ours"]["raised"]
        assert found["ours"]["changed"] == 0, what
        assert len(theirs) == len(ours), (what, found)
        assert ours or found["far"] <= ROUNDING, (what, found)
