"""Random edits between steps: torch's numbers, or a refusal that changes nothing."""

from pathlib import Path

from ..fuzzing import check, runs


def test_whatever_is_done_between_two_steps(tmp_path: Path) -> None:
    check("tests.torch_frontend.stateful.worker", runs(60), tmp_path)
