"""The memory that a step takes beyond what it works on, measured in a process of its own."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import isostep

from .twins import ours

# A transformer's shapes: an embedding and four blocks, with biases and norms.
WIDTH = 768
BLOCK = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)]
SHAPES = [(32000, WIDTH), *4 * [*BLOCK, (4 * WIDTH,), *6 * [(WIDTH,)]]]
RECIPES: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "Adafactor": {},
    "AdamW, clipped and averaged": {"clip": isostep.Clip(global_norm=1.0), "ema": 0.999},
}


def make(shapes: list[tuple[int, ...]]) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.full(shape, 0.5)) for shape in shapes]
    for p in params:
        p.grad = torch.full_like(p, 0.01)
    return params


def size(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def resident() -> int:
    """Bytes of memory in use, counted page by page."""
    return _kilobytes("smaps_rollup", "Rss") << 10


def peak() -> tuple[int, int]:
    """Bytes of memory in use and at most, as the kernel keeps count of them."""
    return _kilobytes("status", "VmRSS") << 10, _kilobytes("status", "VmHWM") << 10


def _kilobytes(file: str, what: str) -> int:
    for line in Path("/proc/self", file).read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1])
    raise KeyError(what)


def forget_the_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main(recipe: str) -> None:
    """Print bytes of parameters, gradients and state, and what was used beyond them."""
    name, extras = recipe.split(",")[0], RECIPES[recipe]
    small = ours(name)(make([(64, 32), (32,)] * 8), **extras)
    for _ in range(3):
        small.step()  # loads the compiler and the kernels, which are no part of a step's memory
    params = make(SHAPES)
    grads: list[Any] = [p.grad for p in params]
    gc.collect()
    before = resident()
    optimizer = ours(name)(params, **extras)
    for _ in range(3):
        optimizer.step()
    state = [v for kept in optimizer.state.values() for v in kept.values()]
    kept = resident() - before - size(state)
    forget_the_peak()
    after, _ = peak()
    optimizer.step()
    _, most = peak()
    found = {"works on": size([*params, *grads, *state]), "kept": kept, "in a step": most - after}
    print(json.dumps(found))
