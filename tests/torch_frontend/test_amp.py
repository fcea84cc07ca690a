"""Mixed precision: GradScaler, autocast, skipped steps."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import isostep

from .twins import FULL, NAMES, assert_same_bits, bits, give, make_grads, make_params, ours, theirs


def scaler(scale: float = 2.0**10) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)


def scaled_loss(params: list[nn.Parameter], step: int) -> torch.Tensor:
    grads = make_grads(params, step)
    return sum((p * g).sum() for p, g in zip(params, grads, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_scaled_step_is_the_step_without_scale(name: str) -> None:
    """The scale is a power of two, so dividing by it is exact."""
    runs = []
    for scaled in (True, False):
        params = make_params(torch.float32)
        optimizer = ours(name)(params, **FULL[name])
        scale = scaler()
        for step in range(8):  # with a change of scale on the way
            optimizer.zero_grad()
            loss = scaled_loss(params, step)
            (scale.scale(loss) if scaled else loss).backward()
            if scaled:
                scale.step(optimizer)
                scale.update()
            else:
                optimizer.step()
        runs.append(bits(optimizer))
    assert scale.get_scale() == 2.0**10
    assert_same_bits(*runs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("first", [True, False])
def test_an_overflow_changes_no_bit(name: str, first: bool) -> None:
    """Also on the first step, where torch's fused SGD keeps a buffer it never filled."""
    params = make_params(torch.float32)
    optimizer = ours(name)(params, **FULL[name])
    scale = scaler()
    if not first:
        scale.scale(scaled_loss(params, 0)).backward()
        scale.step(optimizer)
        scale.update()
        optimizer.zero_grad()
    before = bits(optimizer)
    scale.scale(scaled_loss(params, 1)).backward()
    params[2].grad[0, 0] = float("inf")
    scale.step(optimizer)
    assert_same_bits(bits(optimizer), before)
    assert optimizer.skipped == 1
    old = scale.get_scale()
    scale.update()
    assert scale.get_scale() == old / 2
    optimizer.zero_grad()
    scale.scale(scaled_loss(params, 2)).backward()
    scale.step(optimizer)
    assert optimizer.skipped == 1
    counts = [optimizer.state[p].get("step", 1 + (not first)) for p in params]
    assert counts == [1 + (not first)] * len(params)


def test_gradients_that_the_user_has_unscaled_are_not_divided_again() -> None:
    runs = []
    for make in (ours, theirs):
        params = make_params(torch.float64)
        optimizer = make("AdamW")(params, **FULL["AdamW"])
        scale = scaler()
        for step in range(4):
            optimizer.zero_grad()
            scale.scale(scaled_loss(params, step)).backward()
            scale.unscale_(optimizer)
            nn.utils.clip_grad_norm_(params, 0.7)
            scale.step(optimizer)
            scale.update()
        runs.append(torch.cat([p.detach().flatten() for p in params]))
    assert torch.allclose(*runs, rtol=1e-12, atol=1e-14)


def test_clipping_in_the_step_bounds_the_unscaled_gradients() -> None:
    runs = []
    for fused in (True, False):
        params = make_params(torch.float64)
        clip = isostep.Clip(global_norm=0.7) if fused else None
        optimizer = ours("AdamW")(params, clip=clip, **FULL["AdamW"])
        scale = scaler()
        for step in range(4):
            optimizer.zero_grad()
            scale.scale(scaled_loss(params, step)).backward()
            if not fused:
                scale.unscale_(optimizer)
                nn.utils.clip_grad_norm_(params, 0.7)
            scale.step(optimizer)
            scale.update()
        runs.append(torch.cat([p.detach().flatten() for p in params]))
    assert torch.allclose(*runs, rtol=1e-13, atol=1e-14)


def test_the_scaled_gradients_are_left_scaled() -> None:
    params = make_params(torch.float32)
    optimizer = ours("SGD")(params)
    scale = scaler()
    scale.scale(scaled_loss(params, 0)).backward()
    before = [p.grad.clone() for p in params]
    scale.step(optimizer)
    assert_same_bits([p.grad for p in params], before)


def test_a_loop_with_autocast_and_scaler_learns_and_counts_its_skips() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = ours("AdamW")(model.parameters(), lr=0.01, report=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
    scale = scaler(2.0**8)
    x = torch.randn(64, 8)
    y = x.sum(1, keepdim=True)
    losses: list[float] = []
    for step in range(60):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = (model(x) - y).float().square().mean()
        scale.scale(loss).backward()
        if step in (0, 7, 20):
            model[0].weight.grad[0, 0] = float("nan")
        scale.step(optimizer)
        scale.update()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the first step may be a skipped one
            scheduler.step()
        losses.append(loss.item())
    assert optimizer.skipped == 3
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_skip_without_a_scaler_changes_no_bit(name: str) -> None:
    params = make_params()
    optimizer = ours(name)(params, nonfinite="skip", ema=0.9, report=True, **FULL[name])
    for step in range(3):
        give(params, make_grads(params, step))
        optimizer.step()
    before: Any = bits(optimizer)
    params[1].grad[2] = float("nan")
    optimizer.step()
    assert_same_bits(bits(optimizer), before)
    assert optimizer.skipped == 1
    assert optimizer.report.skipped
    assert optimizer.report.nonfinite == 1


def test_raise_names_the_parameter() -> None:
    params = make_params()
    named = [(f"layer.{k}", p) for k, p in enumerate(params)]
    optimizer = ours("AdamW")(named, nonfinite="raise")
    give(params, make_grads(params, 0))
    params[1].grad[2:] = float("inf")
    with pytest.raises(isostep.GradientError, match=r"'layer\.1' \(3\)"):
        optimizer.step()
