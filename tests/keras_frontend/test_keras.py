"""isostep.keras on each backend: what parity over steps does not show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import subprocesses

BACKENDS = ("torch", "jax", "tensorflow")
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
# Where Keras itself computes in float32 whatever the dtype: means and norms on these backends.
ROUNDED = {
    "torch": ("Adafactor", "accumulated", "Adam averaged"),
    "jax": ("Adafactor",),
    "tensorflow": (),
}


ALONE = (
    "options",
    "saving",
    "groups",
    "state",
    "configuration",
    "schedules",
    "around",
    "overwritten",
    "report",
    "precision",
)


def look(names: Sequence[str], backend: str, **environment: str) -> Any:
    source = f"""
import runpy, sys, warnings
sys.argv = ["worker", *{tuple(names)!r}]
warnings.simplefilter("ignore")
runpy.run_module("tests.keras_frontend.worker", run_name="__main__")
"""
    return subprocesses.run(source, KERAS_BACKEND=backend, **{**QUIET, **environment})


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: Any) -> str:
    return request.param


@pytest.fixture(scope="module")
def found(backend: str) -> Any:
    """What one process of the backend found."""
    return look(ALONE, backend, JAX_ENABLE_X64="1")


def test_options_of_keras_act_as_in_keras(backend: str, found: Any) -> None:
    found = found["options"]
    assert len(found) == 21
    for case, apart in found.items():
        rounded = any(word in case for word in ROUNDED[backend])
        assert apart < (1e-6 if rounded else 1e-12), case


def test_a_saved_model_goes_on(backend: str, found: Any) -> None:
    found = found["saving"]
    assert len(found) == 7
    for rule, (module, apart, same_config) in found.items():
        assert (rule, module, apart, same_config) == (rule, "isostep.keras", 0.0, True)


def test_groups_and_skipped_steps(backend: str, found: Any) -> None:
    found = found["groups"]
    assert found == {"apart": pytest.approx(0, abs=1e-12), "skipped": True, "config": True}


def test_state_is_no_larger_than_the_rule_needs_and_the_kernel_ran(
    backend: str, found: Any
) -> None:
    ran = {
        "SGD": ["native flat float32"],
        "AdamW": ["native flat float32"],
        "Adafactor": ["native rows float32"],
    }
    numbers = {"SGD": 0, "AdamW": 2 * 64 * 32, "Adafactor": 64 + 32}
    state = dict(found["state"])
    assert state.pop("share") < 0.02  # of Keras' Adafactor, which keeps a full second moment
    for rule, (kept, planned, what_ran) in state.items():
        assert (kept, planned) == (numbers[rule], 4 * numbers[rule])
        assert what_ran == (ran[rule] if backend == "torch" else [f"array code, {backend}"])


def test_a_mesh_of_devices_gives_the_same_numbers_and_slots_follow_their_variables() -> None:
    flags = "--xla_force_host_platform_device_count=8"
    found = look(["sharded"], "jax", XLA_FLAGS=flags)["sharded"]
    assert found["apart"] < 1e-5
    assert found["factors"] == ["P(None,)", "P('model',)", "P('model',)", "P(None,)"]


def test_configurations_are_json_and_make_equal_optimizers(backend: str, found: Any) -> None:
    found = found["configuration"]
    assert len(found) == 14
    for case, (input_unchanged, same, same_exclusions) in found.items():
        assert (input_unchanged, same, same_exclusions) == (True, True, True), case


def test_decay_follows_a_schedule_and_settings_can_change(backend: str, found: Any) -> None:
    found = found["schedules"]
    assert found["scheduled"] < 1e-14
    assert found["changed"] < 1e-14
    assert "momentum_buffer" in found["refused"]
    assert [said.split(" is out")[0] for said in found["rates"]] == [
        "learning_rate=inf",
        "learning_rate=nan",
    ]
    assert found["typo"]


def test_constraints_embeddings_and_the_hand_vector_of_the_average(
    backend: str, found: Any
) -> None:
    around = found["around"]
    assert around.pop("average") == [1.0, 0.0, -0.25]
    for rule, apart in around.items():
        # Keras rounds some numbers to float32, on some backends also those of its layers.
        assert apart < 1e-5, rule


def test_variables_that_keras_overwrites_are_left_to_it(backend: str, found: Any) -> None:
    for rule, apart in found["overwritten"].items():
        rounded = backend == "torch" or rule in ROUNDED[backend]  # torch: norms in float32
        assert apart < (1e-6 if rounded else 1e-12), rule


def test_a_report_is_measured_and_not_saved(backend: str, found: Any) -> None:
    found = found["report"]
    assert found["norms"] == pytest.approx([1.0, 0.5, 5.0, False])
    assert found["skipped"] == [True, 1, 0.0]
    assert (found["saved"], found["kept"], found["none"]) == (2, 3, True)


def test_low_precision_moves_and_scales(backend: str, found: Any) -> None:
    found = found["precision"]
    for policy in ("mixed_float16", "mixed_bfloat16"):
        apart, falls = found[policy]
        assert apart < 1e-3, policy  # losses in half precision have three digits
        assert falls, policy
    assert found["scaled"] == 0.0  # 1 - 0.5 * 4/4, a step that is skipped, - 0.5 * 2/2
    assert found["bfloat16"] < 0.1  # eight steps of 0.125 from 1
    assert found["float16"]


def test_mirrored_variables_are_stepped_as_by_keras() -> None:
    found = look(["mirrored"], "tensorflow")["mirrored"]
    assert found.pop("refused") == 1.0
    assert len(found) == 7
    assert max(found.values()) < 1e-10


def test_data_parallel_gives_the_losses_of_one_device() -> None:
    flags = "--xla_force_host_platform_device_count=8"
    assert look(["parallel"], "jax", XLA_FLAGS=flags)["parallel"] < 1e-5


def test_a_model_is_fitted_as_by_keras(backend: str) -> None:
    example = Path(__file__).parents[2] / "examples" / "keras_fit.py"
    source = f"""
import runpy, warnings
warnings.simplefilter("ignore")
print(runpy.run_path({str(example)!r})["main"]())
"""
    assert subprocesses.run(source, KERAS_BACKEND=backend, **QUIET) < 1e-5
