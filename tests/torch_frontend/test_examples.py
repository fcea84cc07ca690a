"""What the examples promise, run as a user runs them."""

from __future__ import annotations

from ..subprocesses import run


def test_a_run_that_changes_optimizers_twice_ends_at_the_loss_of_one_that_does_not() -> None:
    difference = run("import torch_drop_in; print(torch_drop_in.main())", PYTHONPATH="examples")
    assert difference <= 1e-6
