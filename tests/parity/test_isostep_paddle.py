"""isostep.paddle in dynamic graphs, by kernels and by Paddle's operations, over all cases.

`test_paddle.py` holds the same numbers against Paddle itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from .case import Case
from .compare import Reference, reference, run, worst
from .paddle_cases import CASES, EVERY_DTYPE

ENGINES = ("native", "array")
Engines = Callable[[str], Reference]


@pytest.fixture(scope="module")
def ours(shared: Path) -> Engines:
    @cache
    def of(engine: str) -> Reference:
        path = shared / f"isostep-paddle-{engine}.npz"
        return reference("paddle", path, "isostep.paddle", engine)

    return of


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "case", [c for c in [*CASES, *EVERY_DTYPE] if "float64" in c.dtypes], ids=str
)
def test_float64_follows_paddle(engine: str, case: Case, ours: Engines):
    error, where = worst(case, run("paddle", case, "float64"), ours(engine))
    assert error <= case.tolerance, f"{where}: relative error {error:.2e}"
