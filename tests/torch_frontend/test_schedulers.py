"""Every scheduler of torch.optim.lr_scheduler drives isostep's optimizers as it drives torch's."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler

from .twins import Twins

STEPS = 16
RATES = (0.03, 0.007)
# Momentum is cycled under its own name and as the first beta.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.07},
    "AdamW": {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.07},
}
TABLE: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [lambda t: 0.9**t, lambda t: 1 / (1 + t)]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9 + 0.01 * t),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, gamma=0.7),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5, 11], gamma=0.4),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, factor=0.2, total_iters=5),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=7),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.9),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, total_iters=4), lr_scheduler.CosineAnnealingLR(o, 12)],
        milestones=[4],
    ),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=12, power=1.7),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 12, eta_min=1e-3),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, factor=0.3), lr_scheduler.ExponentialLR(o, gamma=0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=1),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(
        o, 0.01, [0.2, 0.1], step_size_up=3, step_size_down=5, mode="triangular2"
    ),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [0.3, 0.1], total_steps=STEPS + 2),
}


def in_two_groups(optimizer: Any, as_tensor: bool) -> None:
    """Move half of the parameters to a second group, and give each group its own rate."""
    first = optimizer.param_groups[0]["params"]
    second, first[2:] = first[2:], []
    optimizer.add_param_group({"params": second})
    for group, rate in zip(optimizer.param_groups, RATES, strict=True):
        group["lr"] = torch.tensor(rate, dtype=torch.float64) if as_tensor else rate
        group.pop("initial_lr", None)


def test_the_table_names_every_scheduler() -> None:
    known = {
        name
        for name, found in vars(lr_scheduler).items()
        if inspect.isclass(found)
        and issubclass(found, lr_scheduler.LRScheduler)
        and not name.startswith("_")
    }
    assert known - {"LRScheduler"} == set(TABLE)


@pytest.mark.parametrize("as_tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("scheduler", TABLE)
def test_a_scheduler_drives_both_alike(scheduler: str, name: str, as_tensor: bool) -> None:
    twins = Twins(name, **OPTIMIZERS[name])
    pair = (twins.a, twins.b)
    for optimizer in pair:
        in_two_groups(optimizer, as_tensor)
    rates = [group["lr"] for group in twins.b.param_groups]
    schedulers = [TABLE[scheduler](optimizer) for optimizer in pair]
    seen: set[tuple[float, ...]] = set()
    for step in range(STEPS):
        twins.step()
        for each in schedulers:
            # A loss that falls, and then stays where it is.
            each.step(*[math.exp(-min(step, 4))] if scheduler == "ReduceLROnPlateau" else [])
        a, b = ([float(group["lr"]) for group in o.param_groups] for o in pair)
        assert a == b
        seen.add(tuple(b))
    assert len(seen) > 1
    for group, rate in zip(twins.b.param_groups, rates, strict=True):
        # Schedulers write into a tensor and put a new float in the place of a float.
        assert isinstance(group["lr"], Tensor) == as_tensor
        assert not as_tensor or group["lr"] is rate


@pytest.mark.parametrize("scheduler", ["CyclicLR", "OneCycleLR"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_momentum_is_cycled(scheduler: str, name: str) -> None:
    twins = Twins(name, **OPTIMIZERS[name])
    in_two_groups(twins.b, as_tensor=False)
    schedule = TABLE[scheduler](twins.b)
    group, seen = twins.b.param_groups[0], set[float]()
    for _ in range(STEPS):
        twins.give()
        twins.b.step()
        schedule.step()
        seen.add(group["momentum"] if "momentum" in group else group["betas"][0])
    assert len(seen) > 5
