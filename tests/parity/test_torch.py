"""isostep beside `torch.optim`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from isostep import dialects

from .case import TOLERANCE, Case
from .compare import (
    Reference,
    assert_defaults,
    assert_float32,
    assert_float64,
    make,
    reference,
    run,
    worst,
)
from .quirks import Quirks
from .torch_cases import CASES

QUIRKS = Quirks("torch")
BY_NAME = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def theirs(shared: Path) -> Reference:
    return reference("torch", shared / "torch.npz")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float64_follows_torch(case: Case, theirs: Reference):
    assert_float64("torch", case, theirs, extra=frozenset({"step"}))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_is_no_further_from_float64_than_torch(case: Case, theirs: Reference):
    assert_float32("torch", case, theirs)


@pytest.mark.parametrize("case", [c for c in CASES if c.rule != "SGD" and not c.poison], ids=str)
def test_step_counts_are_those_of_each_parameter(case: Case, theirs: Reference):
    parameters = case.parameters("float64")
    optimizer = make("torch", case, parameters)
    for step in range(1, 11):
        optimizer.step(case.gradients(step, "float64"))
    counted = optimizer.state_dict()["parameters"]
    for name in parameters:
        assert counted[name]["step"] == theirs[case.name, "float64", "10", name, "step"]


@QUIRKS.shown("torch-sgd-first-gradient-undampened")
def test_the_first_gradient_enters_the_buffer_undampened(theirs: Reference):
    case = BY_NAME["gaps-sgd"]
    step = 5  # the vector's first
    before = theirs[case.name, "float64", "2", "vector", "param"]
    entered = case.gradients(step, "float64")["vector"] + case.arguments["weight_decay"] * before
    parameters = case.parameters("float64")
    optimizer = make("torch", case, parameters)
    for k in range(1, step + 1):
        optimizer.step(case.gradients(k, "float64"))
    np.testing.assert_allclose(optimizer.slots("vector")["momentum_buffer"], entered, rtol=1e-15)


@QUIRKS.shown("torch-sgd-infinite-complex")
def test_an_infinite_part_of_a_complex_gradient_spreads_in_torch_only():
    import torch

    import isostep.torch

    ends: list[torch.Tensor] = []
    for made in (torch.optim.SGD, isostep.torch.SGD):
        p = torch.nn.Parameter(torch.ones(1, dtype=torch.complex128))
        p.grad = torch.tensor([complex(float("inf"), 0.5)], dtype=torch.complex128)
        made([p], lr=0.5, foreach=False).step()
        ends.append(torch.view_as_real(p.detach())[0])
    assert ends[0][0] == ends[1][0] == -float("inf")
    assert ends[0][1].isnan()
    assert ends[1][1] == -0.25


@QUIRKS.shown("torch-rmsprop-centered-unclamped")
def test_centered_rmsprop_takes_roots_of_negative_numbers(theirs: Reference):
    assert np.isnan(theirs["probe", "centered-nan"]).any()
    case = Case(
        "",
        "RMSprop",
        {"lr": 0.01, "alpha": 0.5, "centered": True},
        shapes={"w": (100,)},
    )
    parameters = {"w": np.zeros(100, np.float32)}
    optimizer = make("torch", case, parameters)
    for _ in range(100):
        optimizer.step({"w": np.linspace(0.1, 3.0, 100, dtype=np.float32)})
    assert np.isnan(parameters["w"]).any()


@QUIRKS.shown("torch-adafactor-eps1-clamps")
def test_eps1_of_adafactor_clamps(theirs: Reference):
    case, torch = BY_NAME["adafactor"], dialects.get("torch")
    spelling = torch.spelling("Adafactor")
    adding = replace(spelling, fixed={**spelling.fixed, "clamp_eps": False})
    ours = run(torch.extended(Adafactor=adding), case, "float64")
    assert worst(case, ours, theirs)[0] > 1e-6


@QUIRKS.shown("torch-adafactor-eps1-none")
def test_eps1_none_is_taken_from_the_first_dtype_of_a_group(theirs: Reference):
    def stepped(eps1: float | None) -> np.ndarray:
        parameters = {"first": np.ones(1, np.float32), "second": np.ones(1)}
        case = Case("", "Adafactor", {"lr": 0.1, "eps": (eps1, 1e-3)})
        make("torch", case, parameters).step(
            {"first": np.ones(1, np.float32), "second": np.full(1, 1e-9)}
        )
        return parameters["second"]

    found = theirs["probe", "adafactor-mixed-dtypes"]
    np.testing.assert_allclose(stepped(float(np.finfo(np.float32).eps)), found, rtol=TOLERANCE)
    assert abs(stepped(None) - found) > 1e-3  # isostep: each parameter its own dtype's


@QUIRKS.shown("torch-adafactor-nan-rms")
@pytest.mark.parametrize("where", ["param", "grad"])
@pytest.mark.parametrize("foreach", [False, True])
def test_an_rms_that_is_nan_bounds_nothing_in_adafactor(where: str, foreach: bool):
    import torch

    import isostep.torch

    ends: list[torch.Tensor] = []
    for made in (torch.optim.Adafactor, isostep.torch.Adafactor):
        p = torch.nn.Parameter(torch.arange(1.0, 6.0, dtype=torch.float64))
        p.grad = p.detach().flip(0)
        (p.data if where == "param" else p.grad)[1] = float("inf" if where == "grad" else "nan")
        made([p], lr=0.1, foreach=foreach).step()
        ends.append(p.detach())
    assert ends[0].isnan().tolist() == [False, True, False, False, False]
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-14, atol=0, equal_nan=True)


@QUIRKS.shown("torch-step-in-float32")
def test_the_step_count_stops_at_two_to_the_24(theirs: Reference):
    assert theirs["probe", "step-counter"] == 2**24


@QUIRKS.shown("torch-tensor-hyperparameters")
def test_a_tensor_as_rate_rounds_torchs_coefficients_and_not_ours():
    import torch

    import isostep.torch

    rate = torch.tensor(0.1, dtype=torch.float32)
    ends: dict[str, list[float]] = {}
    for name, made in (("torch", torch.optim.Adam), ("isostep", isostep.torch.Adam)):
        for lr in (rate, float(rate)):
            p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
            optimizer = made([p], lr=lr)
            for step in range(5):
                p.grad = torch.full_like(p, 0.5 + step)
                optimizer.step()
            ends.setdefault(name, []).append(float(p.detach()))
    assert ends["isostep"][0] == ends["isostep"][1]
    assert 1e-10 < abs(ends["torch"][0] - ends["torch"][1]) < 1e-6


def test_defaults_are_those_of_torch(theirs: Reference):
    assert_defaults("torch", theirs)


def test_every_quirk_is_shown():
    QUIRKS.assert_all_shown()
