"""Both engines follow the papers' and frameworks' formulas: every configuration, every dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import isostep

from .oracle import Oracle
from .rounding import Twin
from .table import (
    FORMS,
    PLAIN,
    RECIPES,
    SINGLE,
    AnyArray,
    Config,
    gradients,
    named,
    parameters,
    state_of,
)

ENGINES = ("native", "array")


def layouts(config: Config) -> set[str]:
    """How the tensors of `table.SHAPES` are walked under a configuration."""
    if config.rule != "Adafactor" or not config.h["factored"]:
        return {"flat"}
    return {"flat", "rows", "lanes"}


def expected_state(oracle: Oracle) -> dict[str, Any]:
    found: dict[str, Any] = dict(oracle.params)
    for name, slots in oracle.slots.items():
        found |= {f"{name}.{slot}": value for slot, value in slots.items()}
    found |= {f"{name}.average": value for name, value in oracle.averages.items()}
    return found


def follow(
    config: Config,
    steps: int,
    params: dict[str, AnyArray],
    dtype: str,
    optimizer: isostep.Optimizer,
    twin: Twin | None = None,
) -> dict[str, Any]:
    """Take `steps` with the optimizer and its twin, and return the state that the oracle reaches.

    One tensor misses some gradients, so that step counts differ.
    """
    oracle = config.oracle(params)
    for step in range(steps):
        grads: dict[str, Any] = gradients(step, dtype=dtype)
        grads = {n: (g * config.loss_scale).astype(g.dtype) for n, g in grads.items()}
        if step % 3 == 1:
            grads["bias"] = None
        oracle.step(grads, loss_scale=config.loss_scale)
        if twin is not None:
            twin.step(grads, loss_scale=config.loss_scale)
        optimizer.step(grads, loss_scale=config.loss_scale)
    return expected_state(oracle)


def assert_ran(optimizer: isostep.Optimizer, engine: str, config: Config, compute: str) -> None:
    assert set(optimizer.ran) == {f"{engine} {layout} {compute}" for layout in layouts(config)}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("config", FORMS + RECIPES, ids=str)
def test_float64_follows_the_oracle_to_1e_12_over_200_steps(config: Config, engine: str) -> None:
    params = parameters()
    optimizer = config.optimizer(params, engine=engine)
    expected = follow(config, 200, params, "float64", optimizer)
    state = state_of(optimizer, params)
    assert_ran(optimizer, engine, config, "float64")
    assert state.keys() == expected.keys()
    for name, value in state.items():
        # Relative to each element, but not to one that happens to cross zero at the last step.
        scale = np.maximum(np.abs(expected[name]), np.sqrt(np.mean(expected[name] ** 2)))
        assert np.all(np.abs(value - expected[name]) <= 1e-12 * scale), name


def assert_within_bounds(state: dict[str, AnyArray], expected: dict[str, Any], twin: Twin) -> None:
    bounds = twin.bounds()
    assert {name for name in state if not name.endswith(".master")} == expected.keys()
    for name, value in state.items():
        right = expected[name.removesuffix(".master")]
        # The oracle's own float64 rounding is added; it is 2^29 times smaller than float32's.
        allowed = bounds[name] + 1e-13 * np.abs(right)
        error = np.abs(value.astype(np.float64) - right)
        assert np.all(error <= allowed), (name, float(np.max(error / allowed)))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("config", SINGLE, ids=str)
def test_float32_is_within_its_own_rounding_of_the_oracle(config: Config, engine: str) -> None:
    params = parameters(dtype="float32")
    before = {name: p.astype(np.float64) for name, p in params.items()}
    optimizer = config.optimizer(params, engine=engine)
    twin = Twin(optimizer)
    expected = follow(config, 25, params, "float32", optimizer, twin)
    state = state_of(optimizer, params)
    assert_ran(optimizer, engine, config, "float32")
    assert_within_bounds(state, expected, twin)
    # The bound means something: it is far below what the steps have moved, even in the worst case,
    # where the rate follows the size of the parameter and errors grow with it (Adafactor).
    bounds = twin.bounds()
    moved = [np.abs(expected[name] - before[name]).reshape(-1) for name in before]
    allowed = [np.reshape(bounds[name], -1) for name in before]
    assert np.median(np.concatenate(allowed)) <= 0.05 * np.median(np.concatenate(moved))


def low_precision_cases() -> list[Any]:
    """Every rule in both formats, with masters and without."""
    cases: list[Any] = []
    for k, config in enumerate(named(*PLAIN, "adafactor-torch", "everything")):
        for dtype in ("float16", "bfloat16"):
            master = (k % 2 == 0) == (dtype == "float16")
            id = f"{config}-{dtype}{'-master' * master}"
            cases.append(pytest.param(config, dtype, master, id=id))
    return cases


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("config", "dtype", "master"), low_precision_cases())
def test_low_precision_is_within_its_own_rounding_of_the_oracle(
    config: Config, dtype: str, master: bool, engine: str
) -> None:
    params = parameters(dtype=dtype)
    before = {name: p.astype(np.float64) for name, p in params.items()}
    optimizer = config.optimizer(params, engine=engine, master_weights=master)
    twin = Twin(optimizer)
    expected = follow(config, 12, params, dtype, optimizer, twin)
    state = state_of(optimizer, params)
    assert_ran(optimizer, engine, config, "float32")
    assert_within_bounds(state, expected, twin)
    for name in before:
        assert params[name].dtype.name == dtype
        assert (f"{name}.master" in state) == master
    if master:  # its error is that of float32, however coarse the parameter
        moved = np.abs(expected["weight"] - before["weight"])
        assert np.median(twin.bounds()["weight.master"]) <= 0.02 * np.median(moved)
