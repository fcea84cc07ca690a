"""Epsilons and gradients so small that their squares are denormal: torch's numbers all the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .twins import ours, theirs

CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {"lr": 0.1, "eps": eps}) for name in ("Adam", "AdamW") for eps in (0.0, 1e-22, 1e-20)),
    ("Adam", {"lr": 0.1, "eps": 1e-20, "amsgrad": True}),
    *(("Adagrad", {"lr": 0.1, "eps": eps}) for eps in (0.0, 1e-20)),
    *(("RMSprop", {"lr": 0.1, "eps": eps, "momentum": 0.5}) for eps in (0.0, 1e-20)),
    ("Adadelta", {"lr": 0.5, "eps": 1e-38}),
    ("Adafactor", {"eps": (1e-20, 1e-3)}),
    ("SGD", {"lr": 1e19, "momentum": 0.9}),
]


@pytest.mark.parametrize("size", [1e-20, 1e-18, 1e-10])
@pytest.mark.parametrize(("name", "arguments"), CASES, ids=str)
def test_small_gradients_move_parameters_as_far_as_torch(
    name: str, arguments: dict[str, Any], size: float
) -> None:
    """A square of 1e-40, of which a tenth or a thousandth is kept, has 6 binary digits at least; a
    root halves the error that this makes, and a second step adds another."""
    found = []
    for make in (theirs(name), ours(name)):
        p = torch.nn.Parameter(torch.zeros(6))
        optimizer = make([p], **arguments)
        for _ in range(2):
            p.grad = torch.full_like(p, size)
            optimizer.step()
        found.append(p.detach().double())
    assert found[0].abs().min() > 0
    torch.testing.assert_close(found[1], found[0], rtol=2.0**-6, atol=0.0)


def test_the_mode_of_the_calling_thread_changes_no_number() -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such mode")
    try:
        p = torch.nn.Parameter(torch.ones(1 << 17))
        optimizer = ours("Adam")([p], lr=0.5, eps=0.0)
        p.grad = torch.full_like(p, 1e-20)
        optimizer.step()
        assert torch.equal(p, p[:1].expand_as(p))  # those of the other threads, too
        assert float(p.detach()[0]) == pytest.approx(0.5, abs=0.01)
        assert float(torch.tensor([1e-40]) * 1.0) == 0.0  # and it is as it was
    finally:
        torch.set_flush_denormal(False)
