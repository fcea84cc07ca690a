"""isostep.keras on each backend, called as Keras' own trainers call it, beside Keras itself.

Keras on TensorFlow, which alone keeps to float64 throughout, is what all three are held against.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from .case import Case
from .compare import Reference, reference, run, worst
from .keras_cases import CASES

BACKENDS = ("torch", "jax", "tensorflow")
Backends = Callable[[str], Reference]


@pytest.fixture(scope="module")
def ours(shared: Path) -> Backends:
    @cache
    def of(backend: str) -> Reference:
        return reference(
            "keras",
            shared / f"isostep-keras-{backend}.npz",
            "isostep.keras",
            KERAS_BACKEND=backend,
            KERAS_HOME=str(shared),
            JAX_ENABLE_X64="1",
            JAX_PLATFORMS="cpu",
        )

    return of


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_float64_follows_keras(backend: str, case: Case, ours: Backends):
    error, where = worst(case, run("keras", case, "float64"), ours(backend))
    assert error <= case.tolerance, f"{where}: relative error {error:.2e}"
