"""Random edits between steps: torch's numbers, or a refusal that changes nothing."""

from pathlib import Path

import pytest

from ..fuzzing import check, runs


@pytest.mark.fuzz
def test_whatever_is_done_between_two_steps(tmp_path: Path) -> None:
    check("tests.torch_frontend.stateful.worker", runs(60), tmp_path)
