"""Random edits between steps on Keras' torch backend: Keras' numbers, or a refusal that changes
nothing."""

from pathlib import Path

import pytest

from ..fuzzing import check, runs


@pytest.mark.fuzz
def test_whatever_is_done_between_two_steps(tmp_path: Path) -> None:
    check("tests.keras_frontend.stateful.worker", runs(20), tmp_path)
