"""One of several processes among which ZeroRedundancyOptimizer spreads a model.

Gradients are small whole numbers: their squares add up exactly in any order, so that what spans the
processes has the same bits as in one process that has all parameters.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import isostep
from tests.interruptions import WAYS, instructions, places

from .twins import TOLERANCE, assert_same_bits, ours, theirs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch uses there what it warns of
    from torch.distributed.optim import ZeroRedundancyOptimizer

STEPS = 6
BAD = 3  # the step with a NaN, under the options that look for it
CLIP = {"clip": isostep.Clip(global_norm=4.0)}
OPTIONS: dict[str, dict[str, Any]] = {
    "clip": CLIP,
    "skip": {"nonfinite": "skip"},
    "clip and skip": CLIP | {"nonfinite": "skip"},
    "clip, masters and averages": CLIP | {"ema": 0.9, "state_dtype": "float64"},
    "each norm": {"clip": isostep.Clip(norm=4.0)},
}
RULES = {
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "AdamW": {"lr": 0.1, "weight_decay": 0.1},
    "Adafactor": {"lr": 0.1},
}
MODELS = {
    "matrices and vectors": [(8, 5), (8,), (3, 8), (3,), (2, 3, 4)],
    "less than processes": [(4, 3)],
}


def make_params(shapes: list[tuple[int, ...]]) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


def give(params: list[nn.Parameter], step: int, bad: bool) -> None:
    """Gradients of a step: now and then none of some, and once of all, in some processes."""
    random_ = torch.Generator().manual_seed(step)
    for k, p in enumerate(params):
        p.grad = torch.randint(-9, 10, p.shape, generator=random_).to(p.dtype)
        if (step + k) % 4 == 0:
            p.grad = None
    if bad and step == BAD:
        params[-1].grad = torch.full_like(params[-1], torch.nan)


def grouped(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Two groups, or one if there are not enough parameters."""
    cut = (len(params) + 1) // 2
    groups = [{"params": params[:cut]}, {"params": params[cut:], "lr": 0.2}]
    return groups if len(params) > 1 else groups[:1]


def follows_one_process(rule: str, options: dict[str, Any], shapes: Any) -> None:
    """All processes together take the steps of one that has all parameters, bit for bit."""
    params, alone = make_params(shapes), make_params(shapes)
    hyper = RULES[rule] | options
    optimizer = ZeroRedundancyOptimizer(grouped(params), ours(rule), **hyper)
    single = ours(rule)(grouped(alone), **hyper)
    for step in range(STEPS):
        for own in params, alone:
            give(own, step, bad="nonfinite" in options)
        optimizer.step()
        single.step()
        for mine, one in zip(params, alone, strict=True):
            assert_same_bits(mine.detach(), one.detach())
    assert optimizer.optim.skipped == single.skipped == ("nonfinite" in options)


def gradients_of_any_kind(world: int) -> None:
    """Where squares do not add up exactly, processes differ from one by the order of additions."""
    unit, lr, steps = 2.0**-53, 0.1, 4
    shapes = MODELS["matrices and vectors"]
    params, alone = ([p.detach().double() for p in make_params(shapes)] for _ in range(2))
    optimizer = ZeroRedundancyOptimizer(params, ours("SGD"), lr=lr, **CLIP)
    single = ours("SGD")(alone, lr=lr, **CLIP)
    off = [torch.zeros_like(p) for p in params]
    for step in range(steps):
        torch.manual_seed(step)
        for k, p in enumerate(params):
            p.grad = torch.randn_like(p)
            alone[k].grad = p.grad.clone()
        norm = torch.cat([p.grad.flatten() for p in params]).norm()
        scale = (4.0 / (norm + 1e-6)).clamp(max=1.0)
        for k, p in enumerate(params):
            # Half of what the sum of squares is off by, for each process and addition rounds once;
            # then root, sum, quotient, two products; at last the parameter itself is rounded.
            off[k] += lr * scale * p.grad.abs() * (world + 5) * 2 * unit + 2 * unit * p.abs()
        optimizer.step()
        single.step()
    for mine, one, bound in zip(params, alone, off, strict=True):
        assert bool(((mine - one).abs() <= bound).all())


def follows_torch(rank: int, world: int) -> None:
    """As torch.optim in ZeroRedundancyOptimizer after `clip_grad_norm_`, with gradients of DDP."""
    ends: list[list[Tensor]] = []
    for make, options in (theirs, {}), (ours, CLIP):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8)).double()
        replica = DistributedDataParallel(model)
        optimizer = ZeroRedundancyOptimizer(model.parameters(), make("AdamW"), lr=0.1, **options)
        for step in range(STEPS):
            optimizer.zero_grad()
            random_ = torch.Generator().manual_seed(world * step + rank)
            batch = torch.randn(3, 4, generator=random_, dtype=torch.float64)
            (100 * replica(batch).square().sum()).backward()
            if make is theirs:
                nn.utils.clip_grad_norm_(model.parameters(), 4.0)
            optimizer.step()
        ends.append([p.detach() for p in model.parameters()])
    for a, b in zip(*ends, strict=True):
        assert float((a - b).abs().max() / a.abs().max()) <= TOLERANCE


def raises_everywhere() -> None:
    """What one process has to raise for is raised in all, and no bit is changed."""
    params = make_params(MODELS["matrices and vectors"])
    optimizer = ZeroRedundancyOptimizer(params, ours("AdamW"), lr=0.1, nonfinite="raise", **CLIP)
    give(params, 1, bad=False)
    optimizer.step()
    give(params, BAD, bad=True)
    with unchanged(params), pytest.raises(isostep.GradientError) as caught:
        optimizer.step()
    mine = any(p is params[-1] for p in optimizer.optim.param_groups[0]["params"])
    assert ("of other processes" in str(caught.value)) != mine
    give(params, BAD + 1, bad=False)
    optimizer.step()


def refusals() -> Iterator[tuple[Callable[[Any, Any], Any], Any]]:
    """What makes a step impossible in the first process: how it comes about, and what is raised."""

    def freed(params: Any, _: Any) -> None:
        params[0].grad.untyped_storage().resize_(0)

    def state(_: Any, optimizer: Any) -> None:
        for kept in optimizer.state.values():
            kept["step"].fill_(-1.0)

    yield freed, isostep.GradientError
    yield state, isostep.StateError


def refused_everywhere(rank: int) -> None:
    """A step that one process refuses is not taken by the others, which do not wait for it."""
    for spoil, error in refusals():
        params = make_params([(4, 4)] * 6)
        optimizer = ZeroRedundancyOptimizer(params, ours("AdamW"), lr=0.1, **CLIP)
        give(params, 1, bad=False)
        optimizer.step()
        own = optimizer.optim.param_groups[0]["params"]
        if rank == 0:
            spoil(own, optimizer.optim)
        with unchanged(own), pytest.raises(error if rank == 0 else isostep.PartError):
            optimizer.step()

    def closure() -> float:
        if rank == 0:
            raise ZeroDivisionError
        return 1.0

    with unchanged(params), pytest.raises(ZeroDivisionError if rank == 0 else isostep.PartError):
        optimizer.step(closure)


def struck(rank: int, count: int) -> None:
    """Wherever an exception strikes one process, all have taken the step, or none has."""
    params = make_params([(5, 5)] * 4)
    optimizer = ZeroRedundancyOptimizer(params, ours("AdamW"), lr=0.1, **CLIP).optim
    own = optimizer.param_groups[0]["params"]
    give(params, 1, bad=False)
    length = _traced(optimizer, None, lambda: None)
    ends = set()
    for k, at in enumerate(places(length, count, seed=0)):
        give(params, k, bad=False)
        before = copy.deepcopy([optimizer.state_dict(), own])
        strike = list(WAYS.values())[k % 2] if rank == 0 else (lambda: None)
        with contextlib.suppress(BaseException):
            _traced(optimizer, at if rank == 0 else None, strike)
        counts = {int(kept["step"]) for kept in optimizer.state.values()}
        done = torch.tensor([float(_differs(before, [optimizer.state_dict(), own]))])
        total = done.clone()
        dist.all_reduce(total)
        assert float(total) in (0.0, dist.get_world_size()), f"instruction {at} of {length}"
        assert counts
        ends.add(float(total) > 0)
    assert ends == {False, True}  # both before and after the sums are added up


def _traced(optimizer: Any, at: int | None, strike: Callable[[], None]) -> int:
    # From the first instruction on at which the others can still be told.
    with optimizer._ranks.step():
        return instructions(partial(optimizer._fused_or_own, None), at, strike)


def _differs(a: Any, b: Any) -> bool:
    return repr(a) != repr(b)


@contextlib.contextmanager
def unchanged(params: Any) -> Iterator[None]:
    before = [p.detach().clone() for p in params]
    yield
    for p, old in zip(params, before, strict=True):
        assert_same_bits(p.detach().flatten(), old.flatten())


def added_later() -> None:
    """Groups that come later, and a state that is loaded, are parts as well."""
    shapes = MODELS["matrices and vectors"]
    params, alone = make_params(shapes), make_params(shapes)
    optimizer = ZeroRedundancyOptimizer(params[:2], ours("AdamW"), lr=0.1, **CLIP)
    single = ours("AdamW")(alone[:2], lr=0.1, **CLIP)
    for step in range(STEPS):
        if step == 2:
            optimizer.add_param_group({"params": params[2:]})
            single.add_param_group({"params": alone[2:]})
        for own in params, alone:
            give(own, step, bad=False)
        optimizer.step()
        single.step()
    for mine, one in zip(params, alone, strict=True):
        assert_same_bits(mine.detach(), one.detach())


def reports_are_refused() -> None:
    """What is measured of a part is no report of the model."""
    with pytest.raises(isostep.HyperparameterError, match=r"report: .*ZeroRedundancyOptimizer"):
        ZeroRedundancyOptimizer(make_params([(3, 3)] * 4), ours("SGD"), lr=0.1, report=True)


def copies_are_refused() -> None:
    """A copy of the part alone knows that it is one, and of no processes."""
    params = make_params([(3, 3)] * 4)
    part = ZeroRedundancyOptimizer(params, ours("SGD"), lr=0.1, **CLIP).optim
    copied = copy.deepcopy(part)
    give(copied.param_groups[0]["params"], 1, bad=False)
    with pytest.raises(isostep.HyperparameterError, match="ZeroRedundancyOptimizer gives it"):
        copied.step()


def main(rank: int, file: str, world: int, strikes: int) -> int:
    """Join the other processes; each law is asserted in all of them."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{file}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),  # a process that waits in vain
    )
    for rule in RULES:
        for options in OPTIONS.values():
            for shapes in MODELS.values():
                follows_one_process(rule, options, shapes)
    gradients_of_any_kind(world)
    follows_torch(rank, world)
    raises_everywhere()
    refused_everywhere(rank)
    added_later()
    copies_are_refused()
    reports_are_refused()
    struck(rank, strikes)
    dist.destroy_process_group()
    return rank
