"""What a user's subclass overrides is called as Keras' own class would call it, with its effect."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests import subprocesses
from tests.keras_frontend.test_keras import BACKENDS, QUIET

ROUNDING = 1e-5
"""Of four steps in float32, where the fused step runs."""
NOT_CALLED = {
    "torch": {"_all_reduce_sum_gradients", "_distributed_tf_update_step"},
    "jax": {"_all_reduce_sum_gradients", "_distributed_tf_update_step"},
    "tensorflow": set[str](),
}
"""Methods that only TensorFlow's classes have."""


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: Any) -> str:
    return request.param


@pytest.fixture(scope="module")
def looked(backend: str) -> Any:
    source = """
import runpy, warnings
warnings.simplefilter("ignore")
runpy.run_module("tests.keras_frontend.extension", run_name="__main__")
"""
    return subprocesses.run(source, KERAS_BACKEND=backend, **QUIET)


def test_each_override_gets_its_calls_and_its_effect(backend: str, looked: Any) -> None:
    assert set(looked["unknown"]) == NOT_CALLED[backend]
    effects = 0
    for case, found in looked["found"].items():
        theirs, ours = found["keras"], found["isostep"]
        assert ours["calls"] == theirs["calls"], case
        if ours["ran"] == ["Keras' own step"]:
            assert ours["end"] == theirs["end"], case
        else:
            far = np.abs(np.subtract(ours["end"], theirs["end"])).max()
            assert far < ROUNDING, case
        effects += not case.endswith("recorded") and theirs["end"] not in looked["plain"]
    assert effects >= 13


def test_methods_around_the_step_leave_it_to_the_kernels(backend: str, looked: Any) -> None:
    fused = {
        case.split()[0]
        for case, found in looked["found"].items()
        if found["isostep"]["ran"] != ["Keras' own step"]
    }
    around = {"build", "apply", "get_config", "save_own_variables", "_backend_apply_gradients"}
    assert around <= fused
    points = {"update_step", "assign", "_apply_weight_decay", "_clip_gradients"}
    assert not points & fused


def test_overrides_of_an_object_and_what_does_not_go_with_them(looked: Any) -> None:
    assert looked["on the object"] == [True, True]
    for said in looked["refused"]:
        assert "update_step" in said
    assert looked["refused"][-1].startswith("built: False; report")
