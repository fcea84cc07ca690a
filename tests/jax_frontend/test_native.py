"""isostep.jax by kernels: beside the array code that XLA compiles, and where it must give way."""

from __future__ import annotations

from typing import Any

import pytest

from tests import subprocesses
from tests.jax_frontend.test_jax import FACTORIES

HALF_ULP = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}


@pytest.fixture(scope="module")
def looks() -> Any:
    """What one process found."""
    source = """
import runpy, sys, warnings
warnings.simplefilter("ignore")
sys.argv = ["worker"]
runpy.run_module("tests.jax_frontend.native_worker", run_name="__main__")
"""
    flags = "--xla_force_host_platform_device_count=8"
    return subprocesses.run(source, JAX_PLATFORMS="cpu", XLA_FLAGS=flags)


def test_every_rule_with_every_option_follows_the_array_code(looks: Any) -> None:
    found = looks["options"]
    assert len(found) == 4 * len(FACTORIES)
    for case, (state, engine, other, alike, params) in found.items():
        assert (engine, other, alike) == ("native", "xla", True), case
        assert max(state, params) < 1e-12, case


def test_smaller_dtypes_differ_by_rounding_alone(looks: Any) -> None:
    found = looks["dtypes"]
    assert len(found) == len(FACTORIES) + 4
    for case, (state, engine, other, alike, params, operations) in found.items():
        assert (engine, other, alike) == ("native", "xla", True), case
        # Both round each operation once, in float32; and then the parameters, which may fall to
        # either side.
        rounding = 2 * operations * HALF_ULP["float32"]
        assert state < rounding, case
        assert params < rounding + 2 * HALF_ULP[case.split()[1]], case


def test_gradients_may_be_missing_or_low_or_not_finite(looks: Any) -> None:
    found = dict(looks["gradients"])
    unchanged, count, skipped, nonfinite = found.pop("untouched")
    assert (unchanged, count, skipped, nonfinite) == (True, 0, True, 64)
    for case, (state, engine, _, alike, params) in found.items():
        assert (engine, alike) == ("native", True), case
        assert max(state, params) < 1e-12, case


def test_donated_arrays_are_stepped_where_they_lie_and_others_are_left_alone(looks: Any) -> None:
    found = looks["in_place"]
    assert found.keys() == set(FACTORIES)
    for name, (untouched, stays, copies) in found.items():
        assert untouched, name
        assert stays, name
        assert copies <= 1, name  # of the count


def test_steps_are_scanned_mapped_and_differentiated(looks: Any) -> None:
    found = dict(looks["transformations"])
    assert found.pop("eval_shape")
    apart, engine = found.pop("scan")
    assert apart < 1e-12
    assert engine == "native"
    apart, compiled_again = found.pop("without jit")
    assert apart < 1e-12
    assert compiled_again == 0
    assert found.keys() == {"vmap", "vmap in part", "grad", "jacfwd", "injected"}
    for case, apart in found.items():
        assert apart < 1e-12, case


def test_kernels_are_taken_where_they_run_and_are_faster(looks: Any) -> None:
    found = looks["chosen"]
    assert [found["small"], found["small plan"]] == ["xla", "array"]
    assert [found["large"], found["large plan"]] == ["native", "native"]
    apart, on_one, on_eight = found["devices"]
    assert apart < 1e-12
    assert (on_one, on_eight) == ("native", "xla")
    assert found["second device"] == [0.0, "{CpuDevice(id=1)}"]
    assert not found["exported"]


def test_programs_run_in_several_threads_at_a_time(looks: Any) -> None:
    assert looks["threads"]


ERRORS = {
    "engine": ("HyperparameterError", "engine='numba'"),
    "dtype": ("RuntimeError", "'exp_avg' is a float32"),
    "shape": ("GradientError", "'head/0' has shape (1, 4)"),
    "devices": ("RuntimeError", "mesh"),
    "export": ("RuntimeError", "exported"),
    "nothing": ("RuntimeError", "nothing to step"),
    "inside": ("", "ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_is_wrong(case: str, looks: Any) -> None:
    kind, words = ERRORS[case]
    found = looks["errors"][case]
    assert kind in found[0]
    assert words in found[1]


def test_a_program_runs_again_after_an_error(looks: Any) -> None:
    assert looks["errors"]["after"][0] == "[0.75, 0.75, 0.75]"


def test_kernels_compute_with_denormals_where_an_epsilon_is_too_small_to_hide_them(
    looks: Any,
) -> None:
    """The first update is g / (|g| + eps); a square of 1e-40 has 11 digits in base 2."""
    found = looks["denormals"]
    assert found["1e-20"] == pytest.approx(1 / 1.01, rel=2e-3)
    assert found["0.0"] == pytest.approx(1.0, rel=2e-2)
    assert found["1e-08"] == pytest.approx(0.0, abs=1e-6)
