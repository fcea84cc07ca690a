"""A process of a load: trains one or two perceptrons, and prints the seconds of each iteration.

`python -m benchmarks.trainee '{...}'` says when it is ready and waits for a line on stdin.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.cases import CASES
from benchmarks.loop import Loop
from benchmarks.peers import FRONT_ENDS, torch_optim
from benchmarks.timing import WARM_UP

BATCH, ITEMS = 64, 4096


class _Perceptron(nn.Module):
    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        pairs = [(nn.Linear(width, width), nn.ReLU()) for _ in range(layers)]
        self.layers = nn.Sequential(*(module for pair in pairs for module in pair))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.layers(x), y)


class _Images(Dataset[tuple[Tensor, Tensor]]):
    """Images that are made and distorted by NumPy, 64 x 64 pixels each."""

    def __init__(self, width: int) -> None:
        self._width = width

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        image = np.random.default_rng(number).standard_normal((64, 64), dtype=np.float32)
        image = np.roll(image[:, ::-1], number % 7, axis=0)
        image = np.clip(image, *np.quantile(image, [0.01, 0.99]))
        row = torch.from_numpy(image.ravel()[: self._width].astype(np.float32))
        return row, row.flip(0)


def _batches(width: int, workers: int) -> Iterator[list[Tensor]]:
    """Without an end; a new epoch has new workers, as in most training loops."""
    if not workers:
        pair = [torch.randn(BATCH, width), torch.randn(BATCH, width)]
        while True:
            yield pair
    while True:
        yield from DataLoader(_Images(width), BATCH, num_workers=workers)


def main(
    name: str,
    rule: str,
    layers: int,
    width: int,
    trainings: int,
    workers: int,
    processes: int,
    threads: int,
    seconds: float,
) -> list[tuple[float, float]]:
    """The seconds of all iterations of all trainings: forward and backward, and the step."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    case = CASES[rule]
    ways = {FRONT_ENDS["torch"]: torch_optim.own_way(case), **torch_optim.ways(case)}
    loops = [Loop(_Perceptron(layers, width), ways[name]) for _ in range(trainings)]

    def train(loop: Loop) -> None:
        for number, (x, y) in enumerate(_batches(width, workers)):
            if number and time.perf_counter() > end:
                return
            loop.turn(x, y)

    for loop in loops:
        for _ in range(WARM_UP):
            loop.turn(*next(_batches(width, 0)))
        loop.times.clear()
    print("ready", flush=True)
    sys.stdin.readline()
    end = time.perf_counter() + seconds
    others = [threading.Thread(target=train, args=(loop,)) for loop in loops[1:]]
    for other in others:
        other.start()
    train(loops[0])
    for other in others:
        other.join()
    return [pair for loop in loops for pair in loop.times]


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
