"""isostep.jax with flax nnx, equinox and orbax."""

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
runpy.run_module("tests.jax_frontend.libraries_worker", run_name="__main__")
"""
    return subprocesses.run(source, JAX_PLATFORMS="cpu")


def test_parameters_of_flax_modules_are_grouped_by_the_names_people_use(looks: Any) -> None:
    found = looks["flax"]
    assert found["names"] == ["first/bias", "first/kernel", "rest/0/bias", "rest/0/kernel"]
    assert found["apart"] < 1e-12
    assert found["fused"] < 1e-12


def test_the_arrays_of_equinox_modules_are_trained_and_the_rest_is_left(looks: Any) -> None:
    found = dict(looks["equinox"])
    assert found.pop("names") == [
        f"layers/{k}/{name}" for k in (0, 1) for name in ("weight", "bias")
    ]
    for engine, (updates, fused, offset, steps) in found.items():
        assert max(updates, fused) < 1e-12, engine
        assert (offset, steps) == ([0, 1], 3), engine


def test_training_goes_on_from_an_orbax_checkpoint_with_the_same_bits(looks: Any) -> None:
    found = looks["orbax"]
    assert len(found) == 4
    for case, (same, count) in found.items():
        assert same, case
        assert count == 10, case
