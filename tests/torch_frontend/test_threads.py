"""Python threads that step one optimizer take turns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import isostep.torch
from isostep.torch import AdamW

from ..turns import at_once

STEPS, WORKERS = 20, 3
SHAPES = [(300, 200)] * 3 + [(7,)] * 17


class Own(AdamW):
    """A user's class that torch's own step is for."""

    def _init_group(self, *args: Any, **kwargs: Any) -> Any:
        return super()._init_group(*args, **kwargs)


def made(kind: type[Any], options: dict[str, Any]) -> tuple[list[Any], Any]:
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in SHAPES]
    for p in params:
        p.grad = torch.full_like(p, 0.25)
    return params, kind(params, lr=0.5, betas=(0.5, 0.75), **options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(AdamW, {}), (AdamW, {"clip": isostep.Clip(global_norm=0.5)}), (Own, {})],
    ids=["kernels", "two passes", "torch's own step"],
)
def test_threads_that_step_one_optimizer_take_turns(
    kind: type[Any], options: dict[str, Any]
) -> None:
    params, optimizer = made(kind, options)
    alone, twin = made(kind, options)

    def look() -> None:
        optimizer.state_dict()
        repr(optimizer)

    at_once(optimizer.step, look, STEPS, WORKERS)
    for _ in range(STEPS * WORKERS):
        twin.step()
    assert (optimizer.ran == ["torch.optim"]) == (kind is Own)
    for p, q in zip(params, alone, strict=True):
        assert torch.equal(p, q)
        assert float(optimizer.state[p]["step"]) == STEPS * WORKERS
        for name, value in twin.state[q].items():
            assert torch.equal(optimizer.state[p][name], value)
