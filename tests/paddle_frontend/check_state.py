"""States: Paddle's keys, `.pdopt` files in both directions, shifted names, step counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

import isostep.paddle
from isostep.errors import StateError
from isostep.paddle.powers import power_after, steps_of
from isostep.recipe import EMA

from .twins import OURS, RULES, apart, parameters, take, trained

EXACT = 1e-12


@pytest.mark.parametrize("name", RULES)
def test_keys_shapes_and_dtypes_are_those_of_paddle(name: str) -> None:
    _, theirs = trained(paddle.optimizer, name, **RULES[name])
    _, ours = trained(isostep.paddle, name, **RULES[name])
    found = ours.state_dict()
    del found["isostep"]
    expected = theirs.state_dict()
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert (tensor.shape, tensor.dtype) == (found[key].shape, found[key].dtype), key


@pytest.mark.parametrize("name", RULES)
def test_a_file_of_either_goes_on_in_the_other(name: str, tmp_path: Path) -> None:
    whole, _ = trained(paddle.optimizer, name, steps=12, **RULES[name])
    for first, then in (
        (paddle.optimizer, isostep.paddle),
        (isostep.paddle, paddle.optimizer),
        (isostep.paddle, isostep.paddle),
    ):
        half, saved = trained(first, name, steps=6, **RULES[name])
        paddle.save(saved.state_dict(), str(tmp_path / "half.pdopt"))
        with paddle.utils.unique_name.guard():
            params = parameters()
            for new, old in zip(params, half, strict=True):
                new.set_value(old)
            optimizer = getattr(then, name)(parameters=params, **RULES[name])
            optimizer.set_state_dict(paddle.load(str(tmp_path / "half.pdopt")))
            take(optimizer, params, range(6, 12))
        assert apart(whole, params) < EXACT


@pytest.mark.parametrize("name", OURS)
def test_loading_and_saving_changes_no_bit(name: str) -> None:
    _, saved = trained(isostep.paddle, name, **OURS[name], ema=0.75)
    state = saved.state_dict()
    with paddle.utils.unique_name.guard():
        again = getattr(isostep.paddle, name)(parameters=parameters(), **OURS[name], ema=0.75)
    again.set_state_dict(state)
    same = again.state_dict()
    assert same.keys() == state.keys()
    for key, value in state.items():
        if key == "isostep":
            assert same[key] == value
        else:
            np.testing.assert_array_equal(value.numpy(), same[key].numpy())


@pytest.mark.parametrize("names", [False, True])
def test_shifted_names_lose_nothing(names: bool) -> None:
    """A model built again in the same process has other automatic names."""

    def build() -> tuple[Any, Any]:
        layer = paddle.nn.Sequential(paddle.nn.Linear(4, 5), paddle.nn.Linear(5, 4))
        given = layer.named_parameters() if names else layer.parameters()
        return layer, isostep.paddle.AdamW(0.125, parameters=given, ema=0.5)

    def go_on(layer: Any, optimizer: Any) -> None:
        (layer(paddle.ones([2, 4])) ** 2).mean().backward()
        optimizer.step()
        optimizer.clear_grad()

    with paddle.utils.unique_name.guard():
        first, one = build()
        go_on(first, one)
        state = one.state_dict()
        second, two = build()
        second.set_state_dict(first.state_dict())
        assert {p.name for p in first.parameters()}.isdisjoint(p.name for p in second.parameters())
        two.set_state_dict(state)
    go_on(first, one)
    go_on(second, two)
    assert apart(first.parameters(), second.parameters()) == 0.0


def test_names_in_the_model_go_before_order_and_automatic_names() -> None:
    """Two layers change places, and the second model begins with a number that the first had."""

    def build(order: tuple[str, str]) -> Any:
        model = paddle.nn.Layer()
        for name in order:
            model.add_sublayer(name, paddle.nn.Linear(4, 4))
        return model

    def train(model: Any, optimizer: Any) -> None:
        for name, p in model.named_parameters():
            p.grad = paddle.full_like(p, 1.0 if name.startswith("a") else 2.0)
        optimizer.step()

    with paddle.utils.unique_name.guard():
        first = build(("a", "b"))
        one = isostep.paddle.Momentum(0.5, parameters=first.named_parameters())
        train(first, one)
    with paddle.utils.unique_name.guard():
        second = build(("b", "a"))
        two = isostep.paddle.Momentum(0.5, parameters=second.named_parameters())
    two.set_state_dict(one.state_dict())
    kept = two._accumulators["velocity"]
    for name, p in second.named_parameters():
        assert float(kept[p.name].max()) == (1.0 if name.startswith("a") else 2.0)


def test_a_state_of_paddle_with_shifted_names_is_taken_by_order() -> None:
    params, theirs = trained(paddle.optimizer, "AdamW", **RULES["AdamW"])
    fresh = parameters()  # names that come after those of all before
    for new, old in zip(fresh, params, strict=True):
        new.set_value(old)
    ours = isostep.paddle.AdamW(parameters=fresh, **RULES["AdamW"])
    ours.set_state_dict(theirs.state_dict())
    take(theirs, params, range(12, 16))
    take(ours, fresh, range(12, 16))
    assert apart(params, fresh) < EXACT


def test_a_state_can_be_loaded_before_the_first_step_and_saved_again() -> None:
    _, saved = trained(isostep.paddle, "AdamW", steps=3)
    with paddle.utils.unique_name.guard():
        again = isostep.paddle.AdamW(parameters=parameters())
    assert again.state_dict() == {}
    again.set_state_dict(saved.state_dict())
    assert again.state_dict().keys() == saved.state_dict().keys()


def test_a_second_optimizer_over_the_same_parameters_takes_a_state() -> None:
    """Its accumulators end in another number."""
    with paddle.utils.unique_name.guard():
        params = parameters()
        one = isostep.paddle.Momentum(0.5, parameters=params)
        take(one, params, range(2))
        two = isostep.paddle.Momentum(0.5, parameters=params)
        two.set_state_dict(one.state_dict())
    first, second = one._accumulators["velocity"], two._accumulators["velocity"]
    for p in params:
        np.testing.assert_array_equal(first[p.name].numpy(), second[p.name].numpy())


def test_masters_are_saved_under_paddles_keys() -> None:
    how: dict[str, Any] = {"learning_rate": 0.125, "multi_precision": True}
    _, ours = trained(isostep.paddle, "AdamW", steps=2, dtype="bfloat16", **how)
    with paddle.utils.unique_name.guard():  # which cannot step bfloat16 on a CPU
        params = parameters("bfloat16")
        theirs = paddle.optimizer.AdamW(parameters=params, **how)
        theirs._create_accumulators(paddle.static.default_main_program().global_block(), params)
    found, expected = ours.state_dict(), theirs.state_dict()
    assert found.keys() - {"isostep"} == expected.keys()
    assert found["master_weights"].keys() == expected["master_weights"].keys()
    with paddle.utils.unique_name.guard():
        again = isostep.paddle.AdamW(parameters=parameters("bfloat16"), **how)
        again.set_state_dict(found)
    for name, copy in found["master_weights"].items():
        np.testing.assert_array_equal(copy.numpy(), again._master_weights[name].numpy())


def test_a_scheduler_is_saved_and_must_be_there() -> None:
    def make() -> Any:
        rate = paddle.optimizer.lr.StepDecay(0.5, 2)
        return rate, isostep.paddle.SGD(rate, parameters=parameters())

    rate, one = make()
    for _ in range(5):
        rate.step()
    other, two = make()
    two.set_state_dict(one.state_dict())
    assert other.last_lr == rate.last_lr
    state = one.state_dict()
    del state["LR_Scheduler"]
    with pytest.raises(AssertionError, match="LR_Scheduler"):
        two.set_state_dict(state)


def test_an_average_begins_as_the_parameter_where_the_state_has_none() -> None:
    params, saved = trained(isostep.paddle, "SGD", learning_rate=0.5)
    state = saved.state_dict()
    again = isostep.paddle.SGD(0.5, parameters=params, ema=EMA(0.5))
    again.set_state_dict(state)
    before = [p.numpy() for p in params]
    take(again, params, range(1))
    with again.averaged_params():
        for p, b in zip(params, before, strict=True):
            assert np.abs(p.numpy() - b).max() > 0


def test_averages_are_left_alone_by_an_optimizer_without() -> None:
    params, saved = trained(isostep.paddle, "AdamW", ema=0.75)
    with paddle.utils.unique_name.guard():
        again = isostep.paddle.AdamW(parameters=parameters())
    again.set_state_dict(saved.state_dict())
    assert "average" not in again._accumulators
    assert params


# -- what is refused -------------------------------------------------------------------------------


def refused(optimizer: Any, state: Any, message: str) -> None:
    before = optimizer.state_dict()
    kept = {k: v.numpy().copy() for k, v in before.items() if k != "isostep"}
    with pytest.raises(StateError, match=message):
        optimizer.set_state_dict(state)
    after = optimizer.state_dict()
    assert after.get("isostep") == before.get("isostep")
    assert after.keys() == before.keys()
    for key, value in kept.items():
        np.testing.assert_array_equal(value, after[key].numpy())


def test_states_of_others_are_refused_and_change_nothing() -> None:
    with paddle.utils.unique_name.guard():
        optimizer = isostep.paddle.AdamW(parameters=parameters())
    _, other = trained(isostep.paddle, "Adam", steps=1)
    state = {k: v for k, v in other.state_dict().items() if "moment2" not in k}
    refused(optimizer, state, "lacks moment2")
    state = dict(other.state_dict())
    key = next(k for k in state if "moment1" in k)
    state[key] = paddle.zeros([7])
    refused(optimizer, state, "has shape")
    state = {f"elsewhere_{k}": v for k, v in other.state_dict().items() if k != "isostep"}
    state = {k: v for k, v in state.items() if "_1." not in k}  # fewer, so not by order
    fewer = isostep.paddle.AdamW(parameters=parameters()[:1])
    refused(fewer, state, "another model's")
    refused(optimizer, other.state_dict() | {"isostep": {"steps": 3}}, "damaged")


def test_parameters_that_a_state_lacks_begin_anew_with_a_warning() -> None:
    _, saved = trained(isostep.paddle, "AdamW", steps=3)
    state = saved.state_dict()
    names = [name for _, name in state["isostep"]["names"]]
    partial = {k: v for k, v in state.items() if not k.startswith(f"{names[0]}_")}
    with paddle.utils.unique_name.guard():
        again = isostep.paddle.AdamW(parameters=parameters())
    with pytest.warns(UserWarning, match="begin anew"):
        again.set_state_dict(partial)
    steps = again.state_dict()["isostep"]["steps"]
    assert names[0] not in steps
    assert steps[names[1]] == 3


def test_a_trained_optimizer_refuses_states_without_entries() -> None:
    _, optimizer = trained(isostep.paddle, "AdamW", steps=3)
    _, momentum = trained(isostep.paddle, "Momentum", steps=1)
    for state in ({}, {"a": 1}, momentum.state_dict()):
        refused(optimizer, state, "no entry of the state")
    with pytest.raises(TypeError, match="dict"):
        optimizer.set_state_dict(None)
    fresh = isostep.paddle.AdamW(parameters=parameters())
    fresh.set_state_dict({})  # what was saved before the first step


def test_what_a_state_lacks_begins_anew_in_a_trained_optimizer() -> None:
    params, optimizer = trained(isostep.paddle, "AdamW", steps=3, ema=0.5)
    state = {k: v for k, v in optimizer.state_dict().items() if "average" not in k}
    gone = {k: v for k, v in state.items() if not k.startswith(f"{params[0].name}_")}
    with pytest.warns(UserWarning, match="begin anew"):
        optimizer.set_state_dict(gone)
    before = [p.numpy() for p in params]
    take(optimizer, params, range(3, 4))
    kept = optimizer._accumulators
    assert kept["beta1_pow_acc"][params[0].name].item() == pytest.approx(0.9**2)
    assert kept["beta1_pow_acc"][params[1].name].item() == pytest.approx(0.9**5)
    expected = 0.5 * before[1] + 0.5 * params[1].numpy()
    np.testing.assert_allclose(kept["average"][params[1].name].numpy(), expected)


def test_frozen_parameters_keep_their_state() -> None:
    _, saved = trained(isostep.paddle, "AdamW", steps=3)
    with paddle.utils.unique_name.guard():
        params = parameters()
        params[0].stop_gradient = True
        again = isostep.paddle.AdamW(parameters=params)
    again.set_state_dict(saved.state_dict())
    take(again, params, range(1))
    params[0].stop_gradient = False
    take(again, params, range(1, 2))
    steps = again.state_dict()["isostep"]["steps"]
    assert [steps[p.name] for p in params] == [4, 5, 5, 5]


@pytest.mark.parametrize("classes", [paddle.optimizer, isostep.paddle], ids=["theirs", "ours"])
def test_shifted_names_beside_frozen_parameters(classes: Any) -> None:
    def build() -> list[Any]:
        params = parameters()
        params[0].stop_gradient = True
        return params

    with paddle.utils.unique_name.guard():
        first = build()
        one = classes.Momentum(0.125, parameters=first)
        take(one, first, range(3))
        state = one.state_dict()
    with paddle.utils.unique_name.guard():
        paddle.create_parameter([2], "float32")
        second = build()
        two = isostep.paddle.Momentum(0.125, parameters=second)
        two.set_state_dict(state)
    before, after = one._accumulators["velocity"], two._accumulators["velocity"]
    for old, new in zip(first[1:], second[1:], strict=True):
        np.testing.assert_array_equal(before[old.name].numpy(), after[new.name].numpy())


def test_accumulators_may_be_replaced() -> None:
    params, optimizer = trained(isostep.paddle, "Momentum", steps=2)
    fresh = paddle.zeros_like(params[0])
    optimizer._accumulators["velocity"][params[0].name] = fresh
    take(optimizer, params, range(2, 3))
    assert float(fresh.abs().max()) > 0


def test_a_state_that_is_held_is_live() -> None:
    """As Paddle's: moments and powers go on in it, and powers are believed before the count."""
    params, optimizer = trained(isostep.paddle, "AdamW", steps=2)
    state = optimizer.state_dict()
    take(optimizer, params, range(2, 5))
    with paddle.utils.unique_name.guard():
        again = isostep.paddle.AdamW(parameters=parameters())
    again.set_state_dict(state)
    assert set(again.state_dict()["isostep"]["steps"].values()) == {5}


# -- step counts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99, 0.999, 0.9999])
@pytest.mark.parametrize("steps", [0, 1, 2, 9, 100, 1000, 20_000, 80_000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steps_are_read_from_powers_exactly(beta: float, steps: int, dtype: str) -> None:
    """Whether Paddle multiplied step by step or isostep raised to a power, as long as the power is
    a normal number."""
    kind = np.dtype(dtype).type
    if beta ** (steps + 1) < np.finfo(kind).tiny:
        return
    paddles = np.multiply.accumulate(np.full(steps + 1, beta, kind))[-1]
    assert steps_of(paddles, beta) == steps
    assert steps_of(kind(power_after(beta, steps)), beta) == steps


def test_powers_are_up_to_date_whenever_someone_looks() -> None:
    params, optimizer = trained(isostep.paddle, "AdamW", steps=5, **RULES["AdamW"])
    power = optimizer._accumulators["beta2_pow_acc"][params[0].name]
    assert power.item() == pytest.approx(0.9375**6, rel=1e-12)


def test_edited_powers_are_followed() -> None:
    """What an oracle of one step does: moments and powers of its own."""

    def run(classes: Any) -> Any:
        params, optimizer = trained(classes, "Adam", steps=1, **RULES["Adam"])
        for name, beta in (("beta1_pow_acc", 0.75), ("beta2_pow_acc", 0.9375)):
            optimizer._accumulators[name][params[0].name].set_value(
                paddle.full([1], beta**10, "float64")
            )
        take(optimizer, params, range(1, 3))
        return params, optimizer

    theirs, _ = run(paddle.optimizer)
    ours, optimizer = run(isostep.paddle)
    assert apart(theirs, ours) < EXACT
    steps = optimizer.state_dict()["isostep"]["steps"]
    assert [steps[p.name] for p in ours] == [11, 3, 3, 3]


def test_an_optimizer_with_a_name_keeps_it_in_its_keys() -> None:
    def named(classes: Any) -> Any:
        with paddle.utils.unique_name.guard():
            params = parameters()
            optimizer = classes.Adam(parameters=params, name="mine")
            take(optimizer, params, range(2))
        return optimizer

    theirs, ours = named(paddle.optimizer), named(isostep.paddle)
    assert ours.state_dict().keys() - {"isostep"} == theirs.state_dict().keys()
    with paddle.utils.unique_name.guard():
        again = isostep.paddle.Adam(parameters=parameters(), name="mine")
    again.set_state_dict(theirs.state_dict())
    assert set(again.state_dict()["isostep"]["steps"].values()) == {2}
