"""isostep.tf_keras: what parity over steps does not show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import subprocesses

RULES = ("SGD", "Adagrad", "RMSprop", "Adadelta", "Adam", "AdamW", "Adafactor")
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
# Distances are of float64 numbers that were added up in another order.
CLOSE = 1e-13


TOGETHER = (
    "mesh",
    "sparse",
    "configuration",
    "fits",
    "mixed",
    "saving",
    "methods",
    "xla",
    "states",
)


def look(*names: str) -> Any:
    source = f"""
import runpy, sys, warnings
sys.argv = ["worker", *{names!r}]
warnings.simplefilter("ignore")
runpy.run_module("tests.tf_keras_frontend.worker", run_name="__main__")
"""
    return subprocesses.run(source, **QUIET)


@pytest.fixture(scope="module")
def looks() -> Any:
    """What one process found."""
    return look(*TOGETHER)


@pytest.mark.parametrize("rule", RULES)
def test_a_mesh_gives_the_numbers_of_one_device(rule: str, looks: Any) -> None:
    assert looks["mesh"][rule][0] < CLOSE


LAID_OUT = {"v0": [], "v1": ["x"], "v2": ["x", "y"], "v3": ["unsharded", "x", "y"]}
FACTORS = {
    "r/v2": ["x"],
    "c/v2": ["y"],
    "r/v3": ["unsharded", "x"],
    "c/v3": ["unsharded", "y"],
}


@pytest.mark.parametrize("rule", RULES)
def test_every_slot_on_a_mesh_lies_as_its_variable(rule: str, looks: Any) -> None:
    layouts = looks["mesh"][rule][1]
    assert layouts.pop("iteration") == []
    slots = [name.removeprefix(f"{rule}/") for name in layouts if "statistics" not in name]
    assert len(slots) >= 8  # the averages, and one slot of each variable
    for slot in slots:
        expected = FACTORS.get(slot, LAID_OUT[slot.rpartition("/")[2]])
        assert layouts[f"{rule}/{slot}"] == expected, slot


def test_mirrored_variables_are_stepped_by_the_sum_of_gradients_clipped_after() -> None:
    # In a process of its own: TensorFlow's collectives are either of a mesh or of a strategy.
    found = look("mirrored")["mirrored"]
    assert found.keys() == set(RULES)
    assert max(found.values()) < CLOSE


def test_sparse_gradients_count_as_dense_ones_and_lazy_steps_only_their_rows(looks: Any) -> None:
    found = looks["sparse"]
    refused = found.pop("refused")
    assert found.keys() == set(RULES)
    for rule, (dense, *lazy) in found.items():
        assert dense < CLOSE, rule
        if rule == "Adafactor":
            assert "Adafactor looks at a variable as a whole" in refused
        else:
            apart, others_are_still = lazy
            assert (apart < CLOSE, others_are_still) == (True, True), rule


def test_configurations_are_json_and_make_equal_optimizers(looks: Any) -> None:
    found = looks["configuration"]
    assert len(found) == 3 * len(RULES)
    for case, (input_unchanged, same, same_exclusions) in found.items():
        assert (input_unchanged, same, same_exclusions) == (True, True, True), case


def test_a_fit_has_the_losses_of_tf_keras(looks: Any) -> None:
    found = looks["fits"]
    for rule in RULES:
        # tf_keras rounds some of its numbers to float32.
        assert found[rule] < 1e-6, rule
        assert found[f"{rule} falls"] < 1, rule


def test_mixed_precision_scales_the_loss_around_the_step(looks: Any) -> None:
    found = looks["mixed"]
    # Losses in float16 have three digits.
    assert found["mixed_float16"] < 1e-3
    assert found["mixed_bfloat16"] < 1e-3


def test_a_saved_model_and_a_checkpoint_go_on(looks: Any) -> None:
    found = looks["saving"]
    assert found == {rule: ["isostep.tf_keras", 0.0, 0.0] for rule in RULES}


def test_methods_and_their_errors(looks: Any) -> None:
    found = looks["methods"]
    plain = {
        "pairs": [False, True],
        "variables": ["iteration:0", "m/w:0", "m/b:0"],
        "callable variables": 3,
        "none is a no-op": 0,
        "minimize": None,
        "w": 0.0,
        "iterations": 1,
        "set": 5,
        "lr": 0.25,
        "added": [2],
        "update_step": 0.5,
        "finalized": 1.5,
        "average": [1.0, 0.0, -0.125],
        "constraint": [0.0, 0.5],
    }
    assert {name: found.pop(name) for name in plain} == plain
    errors = {
        "set_weights unbuilt": ("ValueError", "build"),
        "no tape": ("ValueError", "tape"),
        "all none": ("ValueError", "No gradients provided"),
        "excluded late": ("ValueError", "before"),
        "iterations late": ("RuntimeError", "iterations"),
        "unknown": ("KeyError", "cannot recognize variable"),
        "shape": ("ValueError", "not compatible"),
        "schedule": ("TypeError", "not settable"),
        "legacy": ("ValueError", "decay is deprecated"),
        "misspelt": ("TypeError", "momentun"),
        "two clips": ("ValueError", "clipnorm"),
        "momentum": ("ValueError", "ema_momentum"),
        "no decay": ("ValueError", "weight_decay"),
        "rate": ("HyperparameterError", "learning_rate=inf is out of range"),
        "rate set": ("HyperparameterError", "learning_rate=nan is out of range"),
        "nonfinite": ("HyperparameterError", "skip"),
        "switched on late": ("HyperparameterError", "momentum_buffer"),
        "lazy on a mesh": ("ValueError", "lazy"),
    }
    assert found.keys() == errors.keys()
    for case, (kind, words) in errors.items():
        assert found[case][0] == kind, case
        assert words in found[case][1], case


def test_xla_compiles_the_step_on_a_cpu_and_what_it_cannot_is_said(looks: Any) -> None:
    found = looks["xla"]
    heard = found.pop("heard")
    assert found == {
        "default": ["array code, tensorflow, xla"],
        "on": ["array code, tensorflow, xla"],
        "off": ["array code, tensorflow"],
        "lazy": ["array code, tensorflow"],
    }
    assert len(heard) == 1
    assert "number of rows of a sparse gradient" in heard[0]


def test_state_is_no_larger_than_the_rule_needs_and_low_precision_moves(looks: Any) -> None:
    found = looks["states"]
    numbers = {"SGD": 0, "AdamW": 2 * 64 * 32, "Adafactor": 64 + 32}
    for rule, count in numbers.items():
        assert found[rule] == [count, 4 * count]
    assert found["report"] == pytest.approx([1.0, 0.5, 5.0, False])
    assert found["skipped"] == [True, True]
    assert found["bfloat16"] < 0.1  # eight steps of 0.125 from 1
    assert found["float16"]


def test_the_example_runs() -> None:
    example = Path(__file__).parents[2] / "examples" / "dtensor_sgd.py"
    source = f"""
import runpy, warnings
warnings.simplefilter("ignore")
print(runpy.run_path({str(example)!r})["main"]())
"""
    assert subprocesses.run(source, **QUIET) < 1e-6
