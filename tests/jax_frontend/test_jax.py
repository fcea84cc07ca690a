"""isostep.jax: what parity over steps does not show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import subprocesses

FACTORIES = ("sgd", "adagrad", "rmsprop", "adadelta", "adam", "adamw", "adafactor")
# optax keeps Adafactor's decay rate in float32, also for float64 parameters.
ROUNDED = ("adafactor",)


@pytest.fixture(scope="module")
def looks() -> Any:
    """What one process found."""
    source = """
import runpy, warnings
warnings.simplefilter("ignore")
runpy.run_module("tests.jax_frontend.worker", run_name="__main__")
"""
    flags = "--xla_force_host_platform_device_count=8"
    return subprocesses.run(source, JAX_PLATFORMS="cpu", XLA_FLAGS=flags)


def test_every_factory_works_in_every_wrapper_of_optax(looks: Any) -> None:
    found = looks["wrappers"]
    assert len(found) == 49
    for case, apart in found.items():
        assert apart < (1e-6 if case.startswith(ROUNDED) else 1e-12), case


def test_the_fused_form_takes_the_same_steps_and_is_compiled_once(looks: Any) -> None:
    found = looks["fused"]
    assert found.keys() == set(FACTORIES)
    for name, (scanned, averages, optax, compiled) in found.items():
        assert max(scanned, averages) < 1e-14, name
        assert optax < (1e-6 if name in ROUNDED else 1e-12), name
        assert compiled == 1, name


def test_it_can_be_mapped_and_differentiated(looks: Any) -> None:
    found = looks["transformations"]
    assert found["vmap"] < 1e-14
    theirs, ours = found["slopes"]
    assert ours == pytest.approx(theirs, rel=1e-10)


def test_states_are_sharded_as_their_parameters(looks: Any) -> None:
    found = looks["sharded"]
    assert found.keys() == set(FACTORIES)
    for name, (apart, stays, specs) in found.items():
        assert apart < 1e-12, name
        assert stays, name
        for slot, spec in specs.items():
            expected = {"v_row": "P('x',)", "v_col": "P('y',)", "v": "P()"}
            expected = expected.get(slot, "P('x', 'y')")
            assert spec.replace("PartitionSpec", "P") == expected, (name, slot)


def test_options(looks: Any) -> None:
    found = looks["options"]
    for name in ("groups", "mask", "torch", "no params"):
        assert found[name] < 1e-12, name
    assert found["masters"] == 0.0
    assert found["dtypes"] == ["bfloat16"]
    assert found["report"] == pytest.approx([1.0, 0.5, 5.0])
    assert found["skipped"] == [[0.0, 0.0], 1, True]
    assert found["pickled"]
    # Factors of 8 x 16 and 16 x 4, in float64, and full moments of 16 and 1.
    assert found["plan"][0] == 8 * (8 + 16 + 16 + 4 + 16 + 1)
    assert found["plan"][1] == ["head/0", "head/1", "layer/bias", "layer/kernel"]
    assert found["nothing"] == 0  # as in optax


ERRORS = {
    "needs params": ("ValueError", "`params`"),
    "no rate": ("TypeError", "learning_rate"),
    "misspelt": ("TypeError", "beta1"),
    "range": ("HyperparameterError", "b1=1.5"),
    "nonfinite": ("HyperparameterError", "skip"),
    "pattern": ("UnknownNameError", "nothing"),
    "structure": ("HyperparameterError", "structure"),
    "average of integers": ("HyperparameterError", "'w' (int"),
    "torch word": ("TypeError", "dialect='torch'"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_wrong_calls_say_what_is_wrong(case: str, looks: Any) -> None:
    kind, words = ERRORS[case]
    found = looks["errors"][case]
    assert found[0] == kind
    assert words in found[1]


def test_the_example_runs() -> None:
    example = Path(__file__).parents[2] / "examples" / "jax_train.py"
    source = f"""
import json, runpy, warnings
warnings.simplefilter("ignore")
print(json.dumps(runpy.run_path({str(example)!r})["main"]()))
"""
    apart, compiled = subprocesses.run(source, JAX_PLATFORMS="cpu")
    assert apart < 1e-10
    assert compiled == 1
