"""One of several processes that train one model; `test_distributed` starts them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.parallel import DistributedDataParallel

import isostep

from .twins import FULL, NAMES, assert_same_bits, bits, ours, theirs

WORLD = 2
ROWS = 4  # of each process's part of a batch
STEPS = 6
EXTRAS: dict[str, Any] = {
    "clip": isostep.Clip(global_norm=0.5),
    "ema": 0.9,
    "groups": [isostep.Group("*bias", weight_decay=0.0)],
    "report": True,
}


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 5)).double()


def batch(step: int) -> Tensor:
    """The whole batch of one step."""
    random = torch.Generator().manual_seed(step)
    return torch.randn(WORLD * ROWS, 3, 8, generator=random, dtype=torch.float64)


def train(model: nn.Module, optimizer: Any, steps: range, rows: slice = slice(None)) -> None:
    for step in steps:
        optimizer.zero_grad()
        model(batch(step)[rows]).square().mean().backward()
        optimizer.step()


def furthest(a: nn.Module, b: nn.Module) -> float:
    """The largest difference of a parameter, relative to the largest magnitude within it."""
    with torch.no_grad():
        pairs = zip(a.parameters(), b.parameters(), strict=True)
        return max(float((p - q).abs().max() / p.abs().max()) for p, q in pairs)


class Process:
    """The laws as one process sees them.

    Args:
        rank: which process this is.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.rows = slice(rank * ROWS, (rank + 1) * ROWS)

    def _trained(self, make: Any, steps: int = STEPS, **arguments: Any) -> tuple[Any, Any]:
        model = DistributedDataParallel(make_model(), **arguments)
        optimizer = make(model)
        train(model, optimizer, range(steps), self.rows)
        return model, optimizer

    def _same_everywhere(self, values: list[Any]) -> None:
        for value in values:
            mine = (value[1] if isinstance(value, tuple) else value).detach()
            first = mine.clone()
            dist.broadcast(first, 0)
            assert_same_bits(mine, first)

    def follows(self, name: str, bucket_view: bool) -> list[float]:
        """How far it ends from torch.optim in as many processes, and from torch.optim in one."""
        model, optimizer = self._trained(
            lambda m: ours(name)(m.parameters(), **FULL[name]), gradient_as_bucket_view=bucket_view
        )
        self._same_everywhere(bits(optimizer))
        other, _ = self._trained(
            lambda m: theirs(name)(m.parameters(), **FULL[name]),
            gradient_as_bucket_view=bucket_view,
        )
        alone = make_model()
        train(alone, theirs(name)(alone.parameters(), **FULL[name]), range(STEPS))
        return [furthest(other, model), furthest(alone, model)]

    def extras(self) -> float:
        """Clipping, averages and groups: how far it ends from one process."""
        make = lambda m: ours("AdamW")(m.named_parameters(), **FULL["AdamW"], **EXTRAS)  # noqa: E731
        model, optimizer = self._trained(make)
        alone = make_model()
        single = make(alone)
        train(alone, single, range(STEPS))
        self._same_everywhere(bits(optimizer))
        with optimizer.averaged_params(), single.averaged_params():
            averages = furthest(alone, model)
        return max(averages, furthest(alone, model))

    def continues(self, name: str, first: str, second: str) -> None:
        """A state taken by name in the middle goes on, bit for bit if both are isostep's."""
        makers = {"theirs": theirs(name), "ours": ours(name)}
        model, optimizer = self._trained(
            lambda m: makers[first](m.parameters(), **FULL[name]), steps=3
        )
        saved = deepcopy(get_optimizer_state_dict(model, optimizer))
        resumed = DistributedDataParallel(make_model())
        resumed.load_state_dict(model.state_dict())
        fresh = makers[second](resumed.parameters(), **FULL[name])
        set_optimizer_state_dict(resumed, fresh, saved)
        train(model, optimizer, range(3, STEPS), self.rows)
        train(resumed, fresh, range(3, STEPS), self.rows)
        if first == second:
            assert_same_bits(bits(fresh), bits(optimizer))
        else:
            assert furthest(model, resumed) <= 1e-12
        self._same_everywhere(bits(fresh))


def main(rank: int, file: str) -> dict[str, Any]:
    """Join the other processes, and return what was measured."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=WORLD)
    try:
        process = Process(rank)
        followed = {
            f"{name}, bucket view {view}": process.follows(name, view)
            for name in NAMES
            for view in (False, True)
        }
        for name in NAMES:
            for first, second in (("ours", "ours"), ("theirs", "ours"), ("ours", "theirs")):
                process.continues(name, first, second)
        return {"followed": followed, "extras": process.extras()}
    finally:
        dist.destroy_process_group()
