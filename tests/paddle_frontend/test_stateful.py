"""Random edits between steps: Paddle's numbers, or a refusal that changes nothing."""

from pathlib import Path

import pytest

from ..fuzzing import check, runs


@pytest.mark.fuzz
def test_whatever_is_done_between_two_steps(tmp_path: Path) -> None:
    check("tests.paddle_frontend.stateful.worker", runs(60), tmp_path)
