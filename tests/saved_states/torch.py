"""States of torch.optim and of isostep.torch: prints how far training ends from torch's own."""

from __future__ import annotations

import copy
import io
import tempfile
from typing import Any

import torch
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import isostep.torch

from .exchange import Way, differences, gradient, tell

SHAPES = ((), (0,), (5,), (4, 6), (0, 3), (6, 2, 3, 3))
RULES: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.03, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.07},
    "Adagrad": {"lr": 0.3, "lr_decay": 0.05, "initial_accumulator_value": 0.2, "eps": 1e-3},
    "RMSprop": {"lr": 0.02, "alpha": 0.9, "eps": 1e-2, "momentum": 0.7, "centered": True},
    "Adadelta": {"lr": 0.7, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.07},
    "Adam": {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3, "amsgrad": True, "weight_decay": 0.07},
    "AdamW": {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.07},
    "Adafactor": {"lr": 0.3, "beta2_decay": -0.7, "eps": (1e-3, 0.2), "d": 1.3},
}


class Training:
    """A module of parameters, the first half of them in a group of its own."""

    def __init__(self, who: str, rule: str) -> None:
        random = torch.Generator().manual_seed(0)
        self.model = nn.Module()
        # torch's Adafactor divides by the number of elements.
        shapes = [s for s in SHAPES if rule != "Adafactor" or 0 not in s]
        for k, shape in enumerate(shapes):
            value = torch.randn(shape, generator=random, dtype=torch.float64)
            self.model.register_parameter(f"p{k}", nn.Parameter(value))
        self.params = list(self.model.parameters())
        classes = torch.optim if who == "theirs" else isostep.torch
        groups = [{"params": self.params[:3]}, {"params": self.params[3:], "lr": 0.05}]
        self.optimizer = getattr(classes, rule)(groups, **RULES[rule])

    def run(self, steps: range) -> None:
        for step in steps:
            for k, p in enumerate(self.params):
                p.grad = torch.from_numpy(gradient(step, k, p.shape))
            self.optimizer.step()
        self.optimizer.zero_grad()

    def values(self) -> list[Any]:
        return [p.detach().numpy().copy() for p in self.params]

    def take(self, values: list[Any]) -> None:
        with torch.no_grad():
            for p, value in zip(self.params, values, strict=True):
                p.copy_(torch.as_tensor(value))


def written(training: Training) -> bytes:
    file = io.BytesIO()
    torch.save(training.optimizer.state_dict(), file)
    return file.getvalue()


def read(training: Training, saved: bytes) -> None:
    training.optimizer.load_state_dict(torch.load(io.BytesIO(saved), weights_only=True))


def by_name(flat: bool) -> Way:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)

    def save(training: Training) -> Any:
        found = get_optimizer_state_dict(training.model, training.optimizer, options=options)
        return copy.deepcopy(found)

    def load(training: Training, saved: Any) -> None:
        set_optimizer_state_dict(training.model, training.optimizer, saved, options=options)

    return Way(save, load)


def into_folder(training: Training) -> Any:
    folder = tempfile.TemporaryDirectory()
    state = {"optimizer": get_optimizer_state_dict(training.model, training.optimizer)}
    checkpoint.save(state, checkpoint_id=folder.name, no_dist=True)
    return folder


def from_folder(training: Training, folder: Any) -> None:
    state = {"optimizer": get_optimizer_state_dict(training.model, training.optimizer)}
    checkpoint.load(state, checkpoint_id=folder.name, no_dist=True)
    set_optimizer_state_dict(training.model, training.optimizer, state["optimizer"])


WAYS = {
    "state_dict": Way(
        lambda t: copy.deepcopy(t.optimizer.state_dict()),
        lambda t, saved: t.optimizer.load_state_dict(saved),
    ),
    "torch.save": Way(written, read),
    "by name": by_name(flat=False),
    "by name, flat": by_name(flat=True),
    "torch.distributed.checkpoint": Way(into_folder, from_folder),
}

if __name__ == "__main__":
    tell(differences(RULES, Training, WAYS))
