"""Runs `torch_cases` through `torch.optim`: `python -m tests.parity.torch_reference FILE`."""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .case import Array, Case, State, defaults, record
from .torch_cases import CASES


class TorchRunner:
    def __init__(self, case: Case, parameters: dict[str, Array], dtype: str) -> None:
        self.case = case
        self.parameters = {n: nn.Parameter(torch.tensor(a)) for n, a in parameters.items()}
        self.optimizer = getattr(torch.optim, case.framework_class)(
            list(self.parameters.values()), maximize=case.maximize, **case.arguments
        )
        self.model = nn.Module()
        for name, parameter in self.parameters.items():
            self.model.register_parameter(name, parameter)
        self.average = case.average and AveragedModel(
            self.model, multi_avg_fn=get_ema_multi_avg_fn(case.average.momentum)
        )

    def step(self, gradients: dict[str, Array | None]) -> None:
        for name, parameter in self.parameters.items():
            gradient = gradients[name]
            parameter.grad = None if gradient is None else torch.tensor(gradient)
        self._clip()
        self.optimizer.step()
        if self.average:
            self.average.update_parameters(self.model)

    def _clip(self) -> None:
        if self.case.clip is None:
            return
        kind, threshold = self.case.clip
        parameters = list(self.parameters.values())
        if kind == "value":
            nn.utils.clip_grad_value_(parameters, threshold)
        elif kind == "norm":
            for parameter in parameters:
                nn.utils.clip_grad_norm_(parameter, threshold)
        else:
            nn.utils.clip_grad_norm_(parameters, threshold)

    def state(self) -> State:
        averages = dict(self.average.module.named_parameters()) if self.average else {}
        found: State = {}
        for name, parameter in self.parameters.items():
            kept = {k: v for k, v in self.optimizer.state[parameter].items() if v is not None}
            kept |= {"param": parameter} | ({"average": averages[name]} if averages else {})
            found[name] = {k: torch.as_tensor(v).detach().numpy() for k, v in kept.items()}
        return found


def probes() -> dict[str, Array]:
    """What the quirks' tests look at."""
    return {
        "defaults": defaults(
            {case.framework_class: getattr(torch.optim, case.framework_class) for case in CASES}
        ),
        "centered-nan": _centered(),
        "adafactor-mixed-dtypes": _adafactor_of_mixed_dtypes(),
        "step-counter": _step_counter(),
    }


def _centered() -> Array:
    """Centered RMSprop over one gradient for ever: v and gbar^2 come to the same number."""
    parameter = nn.Parameter(torch.zeros(100))
    optimizer = torch.optim.RMSprop([parameter], lr=0.01, alpha=0.5, centered=True)
    for _ in range(100):
        parameter.grad = torch.linspace(0.1, 3.0, 100)
        optimizer.step()
    return parameter.detach().numpy()


def _adafactor_of_mixed_dtypes() -> Array:
    """One step of a float64 parameter that stands behind a float32 one, eps1 being None."""
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.Adafactor([first, second], lr=0.1, eps=(None, 1e-3))
    first.grad, second.grad = torch.ones(1), torch.full((1,), 1e-9, dtype=torch.float64)
    optimizer.step()
    return second.detach().numpy()


def _step_counter() -> Array:
    """The step count of Adam that follows 2^24."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter])
    parameter.grad = torch.ones(1)
    optimizer.step()
    optimizer.state[parameter]["step"].fill_(2.0**24)
    optimizer.step()
    return np.array(optimizer.state[parameter]["step"].item())


if __name__ == "__main__":
    torch.set_num_threads(1)
    record(sys.argv[1], CASES, TorchRunner, probes)
