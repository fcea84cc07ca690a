"""Gradients, variables and hyperparameters in all the forms that tf_keras takes."""

from __future__ import annotations

from typing import Any

import pytest

from tests import subprocesses

# Distances are of float64 numbers that were added up in another order.
CLOSE = 1e-13
SOURCE = """
import runpy, warnings
warnings.simplefilter("ignore")
runpy.run_module("tests.tf_keras_frontend.inputs", run_name="__main__")
"""


@pytest.fixture(scope="module")
def looks() -> Any:
    """What one process found."""
    return subprocesses.run(SOURCE, TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")


def test_a_variable_that_comes_twice_is_stepped_twice(looks: Any) -> None:
    assert len(looks["repeated"]) == 8
    assert max(looks["repeated"].values()) < CLOSE


def test_variables_without_elements_stop_no_rule(looks: Any) -> None:
    assert len(looks["empty"]) == 7
    assert max(looks["empty"].values()) < CLOSE


def test_gradients_are_whatever_converts_to_a_tensor(looks: Any) -> None:
    assert len(looks["forms"]) == 10
    assert max(looks["forms"].values()) < CLOSE


def test_variables_tensors_and_callables_are_read_at_each_step(looks: Any) -> None:
    found = looks["hyperparameters"]
    assert len(found) == 18
    for case, (apart, had_it_been_read_once) in found.items():
        assert apart < CLOSE, case
        assert had_it_been_read_once > 1e-6, case


def test_changing_sets_of_gradients_share_one_program(looks: Any) -> None:
    found = looks["gradient_sets"]
    assert len(found["apart"]) == 7
    assert max(found["apart"].values()) < CLOSE
    # The first set, all variables, and these again for other numbers of rows.
    assert found["traces"] <= 5
    assert found["grad_norm"][0] == pytest.approx(found["grad_norm"][1])
    assert found["skipped"] is True
    assert found["still"] is True


def test_messages_name_what_is_wrong_and_a_way_out(looks: Any) -> None:
    errors = {
        "off the mesh": ("ValueError", "'v:0' lies on no mesh"),
        "another mesh": ("ValueError", "'d:0' lies on another, with axes ['x']"),
        "optimizer off the mesh": ("ValueError", "mesh=variable.layout.mesh"),
        "update_step before build": ("HyperparameterError", "optimizer.build(variables)"),
        "twice": ("HyperparameterError", "groups, nonfinite: not possible"),
        "state of another": ("StateError", "it has 3 variables, and this optimizer 2"),
    }
    assert looks["messages"].keys() == errors.keys()
    for case, (kind, words) in errors.items():
        assert looks["messages"][case][0] == kind, case
        assert words in looks["messages"][case][1], case
