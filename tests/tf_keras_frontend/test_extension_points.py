"""What a subclass overrides: every method of tf_keras' optimizers, against tf_keras' own."""

from __future__ import annotations

from tests import subprocesses


def test_an_override_has_the_calls_and_the_effect_that_it_has_on_tf_keras_class() -> None:
    source = """
import runpy, warnings
warnings.simplefilter("ignore")
runpy.run_module("tests.tf_keras_frontend.extension_points", run_name="__main__")
"""
    found = subprocesses.run(source, TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
    assert found["tried"] > 90
    assert found["unknown"] == []
    assert found["differences"] == {}
    assert found["accepted"] == []
