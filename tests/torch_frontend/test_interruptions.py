"""An exception at any place of a step leaves it done or not begun (torch front-end)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import isostep
import isostep.torch
from tests.fuzzing import runs
from tests.interruptions import Training, check

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "one pass": ("AdamW", {"weight_decay": 0.1, "amsgrad": True}),
    "no count": ("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
    "factors": ("Adafactor", {"weight_decay": 0.1}),
    "a global norm and averages": ("AdamW", {"clip": isostep.Clip(global_norm=0.5), "ema": 0.9}),
    "masters": ("AdamW", {"master_weights": True}),
    "array code": ("AdamW", {"differentiable": True}),
}
PLACES = runs(40)


def training(rule: str, options: dict[str, Any]) -> Training:
    torch.manual_seed(0)
    low = torch.bfloat16 if "master_weights" in options else torch.float32
    params = {
        "matrix": torch.nn.Parameter(torch.randn(6, 5, dtype=low)),
        "strided": torch.nn.Parameter(torch.randn(6, 5).t()),
        "vector": torch.nn.Parameter(torch.randn(7, dtype=torch.float64)),
    }
    if options.get("differentiable"):
        params = {name: p.detach() for name, p in params.items()}  # else no longer leaves
    optimizer: Any = getattr(isostep.torch, rule)(params.items(), **options)

    def step(taken: int) -> None:
        torch.manual_seed(taken)
        for name, p in params.items():
            absent = name == "vector" and taken % 2
            p.grad = None if absent else torch.randn(p.shape, dtype=p.dtype)
        optimizer.step()

    def snapshot() -> dict[str, bytes]:
        found = {n: _bytes(p) for n, p in params.items()}
        for name, p in params.items():
            state = dict(optimizer.state.get(p, {}))
            if state.get("step", 1) == 0:  # as good as not there
                state = {}
            found |= {f"{name}.{key}": _bytes(v) for key, v in state.items()}
        saved = copy.deepcopy(optimizer.state_dict()["param_groups"][0])
        return found | {"counts": repr(saved.get("isostep_iteration")).encode()}

    return Training(step, snapshot)


def _bytes(value: Any) -> bytes:
    plain = value.detach() if isinstance(value, torch.Tensor) else torch.tensor(value)
    return plain.to(torch.float64).numpy().tobytes()


@pytest.mark.fuzz
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_an_exception_leaves_a_step_done_or_not_begun(name: str, steps: int):
    rule, options = OPTIONS[name]
    check(lambda: training(rule, options), steps, PLACES)
