"""A character-level transformer on real text: what the numbers mean for a loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from examples.char_transformer import Text, make_model, train

from .twins import NAMES, ours, theirs

# Rates at which each learns, so that a curve has something to say.
RATES = {
    "SGD": {"lr": 0.3, "momentum": 0.8, "nesterov": True},
    "Adagrad": {"lr": 0.02},
    "RMSprop": {"lr": 2e-3, "momentum": 0.5, "centered": True},
    "Adadelta": {"lr": 1.0},
    "Adam": {"lr": 3e-3, "amsgrad": True},
    "AdamW": {"lr": 3e-3, "weight_decay": 0.1},
    # The bias of the attention's keys has no effect on the loss: its gradient is rounding noise,
    # and stays noise only under an epsilon that is larger.
    "Adafactor": {"lr": 0.02, "eps": (1e-8, 1e-3)},
}
STEPS = 100
LOOKED_AT = range(1000, 1020)  # batches that are not trained on


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The fastest for matrices as small as these, and the same sums everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def text() -> Text:
    return Text()


def loss_of(model: nn.Module, text: Text) -> float:
    with torch.no_grad():
        return sum(model(*text.batch(k)).item() for k in LOOKED_AT) / len(LOOKED_AT)


def trained(text: Text, dtype: torch.dtype, **arguments: Any) -> tuple[nn.Module, float, float]:
    """The model after `STEPS` steps, and its loss before and after."""
    model = make_model(text.kinds).to(dtype)
    before = loss_of(model, text)
    train(model, ours("AdamW")(model.parameters(), lr=3e-3, **arguments), text, range(STEPS))
    return model, before, loss_of(model, text)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_curve_is_torchs(name: str, text: Text) -> None:
    curves: list[list[float]] = []
    for make in (theirs, ours):
        model = make_model(text.kinds).double()
        optimizer = make(name)(model.parameters(), **RATES[name])
        curves.append(train(model, optimizer, text, range(30)))
    a, b = (torch.tensor(curve, dtype=torch.float64) for curve in curves)
    assert torch.allclose(a, b, rtol=1e-12, atol=0)
    assert a[-5:].mean() < 0.9 * a[0]


@pytest.fixture(scope="module")
def full_loss(text: Text) -> float:
    return trained(text, torch.float32)[2]


def test_bfloat16_with_masters_learns_what_float32_learns(text: Text, full_loss: float) -> None:
    _, before, after = trained(text, torch.bfloat16, master_weights=True)
    assert full_loss < 0.7 * before
    assert abs(after - full_loss) <= 0.01 * full_loss


def test_pure_bfloat16_with_a_slow_second_moment_moves(text: Text) -> None:
    """1 - 0.999 rounded to bfloat16 would be zero."""
    start = make_model(text.kinds).to(torch.bfloat16)
    model, before, after = trained(text, torch.bfloat16, betas=(0.9, 0.999))
    for (name, p), q in zip(model.named_parameters(), start.parameters(), strict=True):
        assert not torch.equal(p, q), name
    assert after < 0.8 * before
