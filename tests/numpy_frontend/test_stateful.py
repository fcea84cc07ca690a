"""Random edits between steps: the numbers of an optimizer that is made anew, or a refusal that
changes nothing."""

from pathlib import Path

import pytest

from ..fuzzing import check, runs


@pytest.mark.fuzz
def test_whatever_is_done_between_two_steps(tmp_path: Path) -> None:
    check("tests.numpy_frontend.stateful.worker", runs(60), tmp_path)
