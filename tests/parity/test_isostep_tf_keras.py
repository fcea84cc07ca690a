"""isostep.tf_keras, called as tf_keras' own trainer calls it, beside tf_keras itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from .case import Case
from .compare import Reference, reference, run, worst
from .tf_keras_cases import CASES


@pytest.fixture(scope="module")
def ours(shared: Path) -> Reference:
    return reference("tf_keras", shared / "isostep-tf_keras.npz", "isostep.tf_keras")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float64_follows_tf_keras(case: Case, ours: Reference):
    # The front-end on NumPy arrays was held against tf_keras itself.
    error, where = worst(case, run("tf_keras", case, "float64"), ours)
    assert error <= case.tolerance, f"{where}: relative error {error:.2e}"
