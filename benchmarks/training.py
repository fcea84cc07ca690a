"""A training loop of forward, backward and step: what part of it the step is.

The model is a causal transformer of 3.3 million parameters that reads 8 x 64 tokens at a time.
Every way of stepping trains a model of its own, from the same start, in turns.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.cases import Case
from benchmarks.loop import Loop
from benchmarks.peers import FRONT_ENDS, torch_optim
from benchmarks.timing import WARM_UP, Budget

MODEL = "transformer"
KINDS, WIDTH, HEADS, DEPTH, CONTEXT, BATCH = 256, 256, 4, 4, 64, 8


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.tokens, self.places = nn.Embedding(KINDS, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.layers = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, KINDS)

    def forward(self, text: Tensor) -> Tensor:
        x = self.tokens(text[:, :-1]) + self.places.weight
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        scores = self.head(self.layers(x, mask=mask, is_causal=True))
        return functional.cross_entropy(scores.flatten(0, 1), text[:, 1:].flatten())


def _loop(way: torch_optim.Way) -> Loop:
    torch.manual_seed(0)
    return Loop(_Transformer(), way)


def measure(case: Case, budget: Budget) -> dict[str, Any]:
    """For each way the medians, in milliseconds, of forward and backward, and of the step."""
    ways = {FRONT_ENDS["torch"]: torch_optim.own_way(case), **torch_optim.ways(case)}
    trainings = {name: _loop(way) for name, way in ways.items()}
    random = torch.Generator().manual_seed(0)
    end = time.perf_counter() + budget.seconds
    for number in range(WARM_UP + budget.most):
        if number >= WARM_UP + budget.least and time.perf_counter() > end:
            break
        text = torch.randint(KINDS, (BATCH, CONTEXT + 1), generator=random)
        order = list(trainings.values())
        for training in order if number % 2 == 0 else reversed(order):
            training.turn(text)
    found: dict[str, Any] = {}
    for name, training in trainings.items():
        model, step = training.medians(WARM_UP)
        found[name] = {"model_ms": model * 1e3, "step_ms": step * 1e3}
    return {"training": found}
