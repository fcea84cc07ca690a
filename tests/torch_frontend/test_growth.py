"""Parameters that get their first gradient late: a binding grows by no more than them."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn

import isostep
from isostep.stepper import Stepper
from isostep.torch.binding import Binding

from .twins import FULL, NAMES, Twins, assert_same_bits, bits, give, make_grads, make_params, ours

SHAPES = [(), (5,), (4, 6), (2, 3, 4), (6, 2, 3, 3), (7,), (3, 5), (4, 1)]
EXTRAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "average": {"ema": 0.9},
    "clipped": {"clip": isostep.Clip(global_norm=0.5)},
    "masters": {"master_weights": True, "report": True},
}


def late(step: int, place: int) -> bool:
    """Whether a parameter has a gradient: those with high numbers come late, and not always."""
    return place <= step and (step + place) % 4 != 3


@pytest.mark.parametrize("name", NAMES)
def test_late_parameters_are_stepped_as_torch_steps_them(name: str) -> None:
    twins = Twins(name, lambda: make_params(shapes=SHAPES), **FULL[name])
    for step in range(20):
        grads = make_grads(twins.a_params, step)
        twins.step([g if late(step, k) else None for k, g in enumerate(grads)])


@pytest.mark.parametrize("extras", EXTRAS)
@pytest.mark.parametrize("name", NAMES)
def test_a_grown_binding_steps_as_a_new_one(name: str, extras: str) -> None:
    dtype = torch.bfloat16 if extras == "masters" else torch.float64
    runs = [make_params(dtype, SHAPES) for _ in range(2)]
    grown, new = (ours(name)(params, **FULL[name], **EXTRAS[extras]) for params in runs)
    for step in range(20):
        grads = [g if late(step, k) else None for k, g in enumerate(make_grads(runs[0], step))]
        new._binding = None
        for params, optimizer in ((runs[0], grown), (runs[1], new)):
            give(params, grads)
            optimizer.step()
        assert all(ran.startswith("native") for ran in grown.ran)
        assert_same_bits(bits(grown), bits(new))


def test_only_what_is_new_is_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    bound: list[Binding] = []
    add, make = Stepper.add, Binding.__init__
    monkeypatch.setattr(Stepper, "add", lambda *a: (taken.append(a[1]), add(*a))[1])
    monkeypatch.setattr(Binding, "__init__", lambda *a: (bound.append(a[0]), make(*a))[1])
    params = make_params(shapes=[(3,)] * 60)
    optimizer = ours("AdamW")(params)
    chosen = random.Random(0)
    for step in range(12):
        grads = make_grads(params, step)
        give(params, [g if chosen.random() < 0.5 else None for g in grads])
        optimizer.step()
    assert len(bound) == 1
    assert sorted(taken) == sorted(set(taken))


def test_counts_that_float32_cannot_hold_outlive_growth() -> None:
    params = make_params(torch.float32, [(3,)] * 2)
    optimizer = ours("AdamW")(params)
    give(params, [torch.ones(3), None])
    optimizer.step()
    optimizer.state[params[0]]["step"].fill_(2.0**24)
    for _ in range(3):
        optimizer.step()
    give(params, [torch.ones(3)] * 2)
    optimizer.step()
    assert optimizer._binding.stepper.steps.tolist() == [2**24 + 4, 1]


def test_an_edit_between_is_seen_when_it_grows() -> None:
    twins = Twins("AdamW", lambda: make_params(shapes=[(3,)] * 3), **FULL["AdamW"])
    one, two, three = make_grads(twins.a_params, 0)
    twins.step([one, None, None])
    for params, optimizer in ((twins.a_params, twins.a), (twins.b_params, twins.b)):
        optimizer.state[params[0]]["step"].fill_(7.0)
        optimizer.state[params[0]]["exp_avg"].mul_(2.0)
    twins.step([one, two, None])
    for optimizer in (twins.a, twins.b):
        optimizer.param_groups[0]["lr"] = 0.5
    twins.step([None, two, three])


@pytest.mark.parametrize("place", [0, 2])
def test_a_late_parameter_may_share_memory(place: int) -> None:
    def tied() -> list[nn.Parameter]:
        params = make_params(shapes=[(4, 6), (4, 6)])
        params.insert(place, nn.Parameter(params[0].detach().view(-1)[3:9]))
        return params

    twins = Twins("AdamW", tied, **FULL["AdamW"])
    for step in range(8):
        grads = make_grads(twins.a_params, step)
        twins.step([g if step > 2 or k != place else None for k, g in enumerate(grads)])


def test_one_that_cannot_be_taken_in_changes_nothing() -> None:
    params = make_params(shapes=[(3,)] * 2)
    optimizer = ours("AdamW")(params)
    give(params, [torch.ones(3, dtype=torch.float64), None])
    optimizer.step()
    optimizer.state[params[1]] = {"step": torch.tensor(0.5)}
    params[1].grad = torch.ones(3, dtype=torch.float64)
    before = bits(optimizer)
    with pytest.raises(isostep.StateError, match="step count"):
        optimizer.step()
    assert_same_bits(bits(optimizer), before)
    del optimizer.state[params[1]]
    optimizer.step()
    assert optimizer.state[params[1]]["step"] == 1
