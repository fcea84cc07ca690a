"""torch's own database of optimizers, configurations and errors, crossed with isostep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

from .twins import NAMES, Twins, make_params, ours

STEPS = 200
INFOS = {info.optim_cls.__name__: info for info in optim_db if info.optim_cls.__name__ in NAMES}
CONFIGURATIONS = [
    (name, configuration.desc, configuration.kwargs)
    for name, info in INFOS.items()
    for configuration in info.optim_inputs_func(device="cpu", dtype=torch.float64)
]
ERRORS = [
    (name, error)
    for name, info in INFOS.items()
    for error in info.optim_error_inputs_func("cpu", torch.float64)
]


def every_layout() -> list[nn.Parameter]:
    """Ranks 0 to 4, a channels_last kernel, a transposed and a strided matrix."""
    torch.manual_seed(0)
    last = torch.randn(6, 4, 3, 3, dtype=torch.float64).to(memory_format=torch.channels_last)
    wide = torch.randn(10, 14, dtype=torch.float64)
    odd = [last, wide.clone()[:, :7].t(), wide.clone()[::2, ::2]]
    return make_params() + [nn.Parameter(p) for p in odd]


def test_the_database_has_all_seven() -> None:
    assert set(INFOS) == set(NAMES)


@pytest.mark.parametrize(
    ("name", "description", "arguments"),
    CONFIGURATIONS,
    ids=[f"{name}-{description}" for name, description, _ in CONFIGURATIONS],
)
def test_every_configuration_follows_the_loop(
    name: str, description: str, arguments: dict[str, Any]
) -> None:
    twins = Twins(name, every_layout, **arguments)
    twins.run(STEPS, compare_every=10)
    layouts = {"flat", "rows", "lanes"} if name == "Adafactor" else {"flat"}
    assert {tuple(ran.split()) for ran in twins.b.ran} == {
        ("native", layout, "float64") for layout in layouts
    }


@pytest.mark.parametrize(
    ("name", "error"), ERRORS, ids=[f"{n}-{e.optimizer_error_input.desc}" for n, e in ERRORS]
)
def test_every_error_is_raised(name: str, error: Any) -> None:
    given = error.optimizer_error_input
    params = [nn.Parameter(torch.zeros(1))] if given.params is None else given.params
    if error.error_on == OptimizerErrorEnum.STEP_ERROR:
        optimizer = ours(name)(params, **given.kwargs)
        with pytest.raises(error.error_type, match=error.error_regex):
            optimizer.step()
    elif issubclass(error.error_type, Warning):
        with pytest.warns(error.error_type, match=error.error_regex):
            ours(name)(params, **given.kwargs)
    else:
        with pytest.raises(error.error_type, match=error.error_regex):
            ours(name)(params, **given.kwargs)
