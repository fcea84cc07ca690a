"""isostep.jax keeps optax' contract: arguments, structures, dtypes, errors, and complex numbers."""

from __future__ import annotations

from typing import Any

import pytest

from tests import subprocesses


@pytest.fixture(scope="module")
def looks() -> Any:
    """What one process found."""
    source = """
import runpy, warnings
warnings.simplefilter("ignore")
runpy.run_module("tests.jax_frontend.contract_worker", run_name="__main__")
"""
    flags = "--xla_force_host_platform_device_count=8"
    return subprocesses.run(source, JAX_PLATFORMS="cpu", XLA_FLAGS=flags)


SAME = {
    "signatures": 10,  # functions
    "dtypes": 15 * 25,  # rules, pairs of dtypes
    "rates": 15 * 8 * 2,  # rules, forms of a rate, dtypes
    "leaves": 15 * 9,  # rules, kinds of leaves
    "shapes": 15 * 13,  # rules, forms of a tree
    "explicit": 15,  # rules
    "edited_states": 15 * 4,  # rules, edits
}


@pytest.mark.parametrize("look", SAME)
def test_ours_does_what_optax_does(look: str, looks: Any) -> None:
    assert looks[look]["differ"] == []
    assert looks[look]["cases"] == SAME[look]


def test_complex_parameters_are_stepped_as_in_optax(looks: Any) -> None:
    found = dict(looks["complex_numbers"])
    assert len(found) == 15
    # Both keep one slot in bfloat16, which rounding elsewhere may bring to either side, and one
    # decay rate in float32.
    assert found.pop("adamw mu") < 2.0**-8
    for rule, apart in found.items():
        assert apart < (1e-6 if "adafactor" in rule else 1e-12), rule


@pytest.mark.parametrize("look", ["modes", "counts"])
def test_ours_ends_where_it_should(look: str, looks: Any) -> None:
    assert looks[look]
    for case, apart in looks[look].items():
        assert apart < (1e-6 if "adafactor" in case else 1e-12), case


def test_steps_outside_of_functions_keep_no_array_alive(looks: Any) -> None:
    assert looks["memory"] < 1000


REFUSED = {
    "complex, torch": ("HyperparameterError", "split_real_and_imaginary"),
    "complex, value": ("HyperparameterError", "global_norm"),
    "complex, dtype": ("HyperparameterError", "state_dtype is real"),
    "integers, extra": ("HyperparameterError", "'count' (int64)"),
    "integers, torch": ("HyperparameterError", "dialect='torch'"),
    "another's": ("HyperparameterError", "TraceState"),
    "no count": ("HyperparameterError", "ScaleByScheduleState"),
    "complex, kernels": ("RuntimeError", "complex64"),
    "a dict": ("HyperparameterError", "optimizer.init(params)"),
    "torch, optax": ("HyperparameterError", "dialect='torch'"),
    "average of shapes": ("HyperparameterError", "jax.eval_shape(optimizer.init, params)"),
    "key": ("TypeError", "'key'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_named(case: str, looks: Any) -> None:
    kind, words = REFUSED[case]
    found = looks["refusals"][case]
    assert found[0] == kind
    assert words in found[1]
