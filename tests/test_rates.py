"""Laws of a group's learning rate: it follows the optimizer's, or stands for itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import isostep
from isostep import Clip, Group, schedules
from isostep.errors import HyperparameterError

STEPS = 6


def halving(t: int) -> float:
    return 0.5**t


def moved(engine: Any, group: Group, **options: Any) -> tuple[Any, Any]:
    """How far a parameter of no group and one of `group` go in each step, at a gradient of one."""
    params = {"out": np.zeros(3), "inside": np.zeros(3)}
    optimizer = isostep.Optimizer("SGD", params, groups=[group], engine=engine, **options)
    grads = {name: np.ones(3) for name in params}
    path = [{name: array[0] for name, array in params.items()}]
    for _ in range(STEPS):
        optimizer.step(grads)
        path.append({name: array[0] for name, array in params.items()})
    return tuple(-np.diff([at[name] for at in path]) for name in ("out", "inside"))


@pytest.mark.parametrize("engine", ["native", "array"])
@pytest.mark.parametrize("lr", [0.25, halving, schedules.Cosine(peak=0.5, steps=STEPS)])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 3.0, halving])
def test_a_ratio_is_a_factor_on_whatever_the_rate_is(engine: Any, lr: Any, ratio: Any) -> None:
    outside, inside = moved(engine, Group("inside", lr_ratio=ratio), lr=lr)
    factor = [ratio(t) if callable(ratio) else ratio for t in range(STEPS)]
    assert outside == pytest.approx([lr(t) if callable(lr) else lr for t in range(STEPS)])
    assert inside == pytest.approx(outside * factor)


def test_a_number_under_a_schedule_is_the_rate_at_its_start() -> None:
    outside, inside = moved("native", Group("inside", lr=0.1), lr=halving)
    assert inside == pytest.approx(0.1 * outside)
    again = moved("native", Group("inside", lr=0.1, lr_ratio=0.5), lr=halving)[1]
    assert again == pytest.approx(0.5 * inside)


def test_a_number_beside_a_number_and_a_schedule_of_its_own_stand_for_themselves() -> None:
    assert moved("native", Group("inside", lr=0.1), lr=0.7)[1] == pytest.approx([0.1] * STEPS)
    own = moved("native", Group("inside", lr=lambda t: t + 1.0), lr=halving)[1]
    assert own == pytest.approx(np.arange(STEPS) + 1.0)


@pytest.mark.parametrize("start", [0.0, 1e-6])
def test_under_a_warm_up_a_number_is_refused_because_nobody_means_the_start(start: float) -> None:
    warm = schedules.LinearWarmup(peak=0.1, steps=10, start=start)
    with pytest.raises(HyperparameterError, match="lr_ratio"):
        moved("native", Group("inside", lr=0.1), lr=warm)
    outside, inside = moved("native", Group("inside", lr_ratio=0.1), lr=warm)
    assert inside == pytest.approx(0.1 * outside)


@pytest.mark.parametrize("ratio", [-1.0, float("nan"), "much", None])
def test_a_ratio_that_is_no_factor_is_refused(ratio: Any) -> None:
    with pytest.raises(HyperparameterError, match="lr_ratio"):
        moved("native", Group("inside", lr_ratio=ratio), lr=0.1)


def test_a_ratio_can_be_changed_and_stays_when_the_rate_is_changed() -> None:
    params = {"out": np.zeros(1), "inside": np.zeros(1)}
    grads = {name: np.ones(1) for name in params}
    optimizer = isostep.SGD(params, lr=1.0, groups=[Group("inside", lr_ratio=0.5)])
    optimizer.set(lr=0.2)
    optimizer.step(grads)
    assert (params["out"][0], params["inside"][0]) == pytest.approx((-0.2, -0.1))
    optimizer.set("inside", lr_ratio=2.0)
    optimizer.step(grads)
    assert (params["out"][0], params["inside"][0]) == pytest.approx((-0.4, -0.5))
    assert "lr_ratio=2.0" in str(optimizer.plan())


def now(values: list[float]) -> Callable[[], float]:
    """A callable without arguments that gives one value after the other."""
    left = iter(values)
    return lambda: next(left)


def test_callables_without_arguments_are_read_at_each_step() -> None:
    params = [{"w": np.array([1.0, -2.0])} for _ in range(2)]
    rates, bounds, rho = [0.3, 0.2, 0.1], [5.0, 0.5, 0.05], [0.9, 0.5, 0.1]
    live = isostep.RMSprop(
        params[0], lr=now(rates), alpha=now(rho), clip=Clip(norm=now(bounds)), ema=now(rho)
    )
    state: dict[str, Any] = {}
    for t in range(3):
        # Another optimizer for each step, with the numbers that hold in it and the state so far.
        fixed = isostep.RMSprop(
            params[1], lr=rates[t], alpha=rho[t], clip=Clip(norm=bounds[t]), ema=rho[t]
        )
        if state:
            fixed.load_state_dict(state)
        gradient = {"w": np.array([3.0, 0.5])}
        live.step(gradient)
        fixed.step(gradient)
        state = fixed.state_dict()
        assert np.array_equal(params[0]["w"], params[1]["w"])
        assert np.array_equal(live.slots("w")["average"], fixed.slots("w")["average"])


def test_a_callable_may_stand_where_a_framework_turns_the_sign() -> None:
    params = [{"w": np.array([[1.0, -2.0]])} for _ in range(2)]
    given = [now([-0.8, -0.8]), -0.8]
    for held, decay in zip(params, given, strict=True):
        optimizer = isostep.Adafactor(held, dialect="keras", beta_2_decay=decay)
        for _ in range(2):
            optimizer.step({"w": np.array([[3.0, 0.5]])})
    assert np.array_equal(params[0]["w"], params[1]["w"])
