"""What users hand to isostep.keras, on each backend: gradients, hyperparameters, states."""

from __future__ import annotations

from typing import Any

import pytest

from tests import subprocesses
from tests.keras_frontend.test_keras import BACKENDS, QUIET

ROUNDING = 1e-6
"""Of a few steps in float32, with values about 1."""


@pytest.fixture(scope="module", params=BACKENDS)
def found(request: Any) -> Any:
    source = """
import runpy, warnings
warnings.simplefilter("ignore")
runpy.run_module("tests.keras_frontend.inputs", run_name="__main__")
"""
    return subprocesses.run(source, KERAS_BACKEND=request.param, **QUIET)


def test_gradients_are_whatever_converts_to_a_tensor(found: Any) -> None:
    assert len(found["gradients"]) >= 33
    assert {case: far for case, far in found["gradients"].items() if far > 0} == {}
    assert found["compiled_rows"] <= ROUNDING


def test_a_variable_that_comes_twice_is_stepped_twice(found: Any) -> None:
    twice = found["twice"]
    assert "twice" in twice.pop("refused")
    assert twice.pop("unchanged")
    assert len(twice) == 8
    assert {case: far for case, far in twice.items() if not far <= ROUNDING} == {}


def test_sums_of_gradients_are_forgotten_where_keras_forgets_them(found: Any) -> None:
    assert len(found["sums"]) == 3
    assert max(found["sums"].values()) <= ROUNDING


def test_array_code_keeps_the_dtype_of_its_arguments(found: Any) -> None:
    assert found["dtypes"] == []


def test_variables_without_elements_change_nothing(found: Any) -> None:
    assert len(found["empty"]) == 7
    assert max(found["empty"].values()) <= ROUNDING


def test_the_rate_of_a_group_follows_the_schedule(found: Any) -> None:
    assert found["rates"] == {"lr_ratio": 0.125, "rate": 0.125}


def test_variables_are_excluded_from_decay_by_identity(found: Any) -> None:
    theirs, ours = found["excluded"]
    assert ours == theirs == [1.0, 0.9375]


def test_hyperparameters_are_read_at_each_step(found: Any) -> None:
    assert len(found["live"]) == 27
    assert {case: far for case, far in found["live"].items() if not far <= ROUNDING} == {}


def test_configurations_are_plain_data(found: Any) -> None:
    assert found["configurations"] == [True, 0.75, 0.875, ["Mine", "Mine"]]


def test_states_wait_for_variables_and_are_refused_if_they_do_not_fit(found: Any) -> None:
    states = found["states"]
    assert states["apart"] < 10 * ROUNDING  # two epochs
    assert "6 variables, and this optimizer 4" in states["refused"]
    assert states["iterations"] == 0
    assert "5 variables, and this optimizer 6" in states["short"]
    for counts, said in zip(("6 variables", "2 variables"), states["waiting"], strict=True):
        assert f"it has {counts}, and this optimizer" in said[0]
        assert said[1] != "nothing"  # on TensorFlow Keras' trainer cannot go on after an error


def test_errors_say_what_to_do(found: Any) -> None:
    messages = found["messages"]
    assert "optimizer.build(variables)" in messages["before build"]
    assert "other" in messages["unknown"]
    assert "(3,)" in messages["shape"]
    assert messages["unchanged"] == "[1.0, 2.0]"
