"""isostep.jax by optax' contract and by its fused form with both engines, all under jit, beside the
NumPy front-end, which is held against optax itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from .case import Case
from .compare import Reference, reference, run, worst
from .optax_cases import CASES

FORMS = ("update", "apply", "native")


@pytest.fixture(scope="module")
def ours(shared: Path) -> Callable[[str], Reference]:
    @cache
    def of(form: str) -> Reference:
        return reference("optax", shared / f"isostep-jax-{form}.npz", form)

    return of


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_float64_follows_optax(form: str, case: Case, ours: Callable[[str], Reference]):
    error, where = worst(case, run("optax", case, "float64"), ours(form))
    assert error <= case.tolerance, f"{where}: relative error {error:.2e}"
