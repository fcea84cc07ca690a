"""Steps in dynamic graphs: what parity over all cases does not show."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
from paddle.nn import ClipGradByGlobalNorm, ClipGradByNorm, ClipGradByValue
from paddle.optimizer import lr
from paddle.regularizer import L1Decay, L2Decay

import isostep.paddle
from isostep import EMA

from .twins import OURS, RULES, apart, both, gradients, parameters, take, trained

EXACT = 1e-12
FLOAT32 = 1e-5  # twelve steps of float32 arithmetic, in another order


@pytest.mark.parametrize("name", RULES)
def test_twelve_steps_are_those_of_paddle(name: str) -> None:
    assert both(name, **RULES[name]) < EXACT


# -- groups ----------------------------------------------------------------------------------------


def split(params: list[Any]) -> list[dict[str, Any]]:
    return [
        {"params": params[:2], "weight_decay": 0.25, "learning_rate": 0.5},
        {"params": params[2:], "weight_decay": 0.125},
    ]


@pytest.mark.parametrize("name", RULES)
def test_groups_scale_the_rate_and_set_the_decay(name: str) -> None:
    rate = lr.PiecewiseDecay([3, 7], [0.5, 0.25, 0.125])
    how = RULES[name] | {"learning_rate": rate, "groups": split}
    assert both(name, **how) < EXACT


@pytest.mark.parametrize("name", RULES)
def test_a_tensor_as_the_rate_of_a_group_is_the_rate_itself(name: str) -> None:
    """A number is a factor on the optimizer's."""

    def groups(params: list[Any]) -> Any:
        own = paddle.to_tensor(0.25, dtype="float64")
        return [{"params": params[:2], "learning_rate": own}, {"params": params[2:]}]

    assert both(name, groups=groups, **RULES[name]) < EXACT


def test_groups_set_what_the_class_lets_them() -> None:
    def groups(params: list[Any]) -> Any:
        return [
            {"params": params[:1], "beta1": 0.5, "epsilon": 0.0078125},
            {"params": params[1:], "beta2": 0.75},
        ]

    assert both("AdamW", **RULES["AdamW"], groups=groups) < EXACT


def test_settings_of_the_last_group_do_not_stay_in_the_optimizer() -> None:
    _, optimizer = trained(
        isostep.paddle,
        "Adagrad",
        learning_rate=0.5,
        groups=lambda p: [{"params": p, "initial_accumulator_value": 0.5}],
    )
    assert optimizer.initial_accumulator_value == 0.0


# -- clipping --------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [ClipGradByValue(0.25), ClipGradByGlobalNorm(0.5)])
@pytest.mark.parametrize("name", ["Momentum", "AdamW"])
def test_parameters_can_be_left_out_of_clipping(name: str, clip: Any) -> None:
    how = RULES[name] | {"grad_clip": clip, "attributes": {"need_clip": False}}
    assert both(name, **how) < EXACT


def test_norms_of_single_tensors_are_clipped() -> None:
    assert (
        both("SGD", dtype="float32", learning_rate=0.125, grad_clip=ClipGradByNorm(0.5)) < FLOAT32
    )


def test_clipping_comes_before_coupled_decay() -> None:
    SGD = {"learning_rate": 0.125, "weight_decay": 4.0}
    # A decay that the norm would count is far larger than the norm.
    assert both("SGD", **SGD, grad_clip=ClipGradByGlobalNorm(0.5)) < EXACT


def test_a_global_norm_is_that_of_all_groups() -> None:
    clip = ClipGradByGlobalNorm(0.5)
    one, _ = trained(isostep.paddle, "SGD", learning_rate=0.5, grad_clip=clip)
    two, _ = trained(
        isostep.paddle,
        "SGD",
        learning_rate=0.5,
        grad_clip=clip,
        groups=lambda p: [{"params": p[:2]}, {"params": p[2:]}],
    )
    assert apart(one, two) < EXACT


def test_a_global_norm_is_paddles_if_asked_for() -> None:
    how: dict[str, Any] = {"learning_rate": 0.5, "grad_clip": ClipGradByGlobalNorm(0.5)}
    how["groups"] = lambda p: [{"params": p[:2]}, {"params": p[2:]}]
    theirs, _ = trained(paddle.optimizer, "SGD", **how)
    ours, _ = trained(isostep.paddle, "SGD", **how, clip_per_group=True)
    whole, _ = trained(isostep.paddle, "SGD", **how)
    assert apart(theirs, ours) < EXACT
    assert apart(theirs, whole) > 1e-2


def test_groups_may_clip_differently() -> None:
    def groups(params: list[Any]) -> Any:
        return [
            {"params": params[:2], "grad_clip": ClipGradByGlobalNorm(0.25)},
            {"params": params[2:3], "grad_clip": ClipGradByValue(0.5)},
            {"params": params[3:], "grad_clip": None},
        ]

    assert both("Momentum", **RULES["Momentum"], groups=groups) < EXACT


class HalfOfIt(paddle.nn.clip.GradientClipBase):
    """A clip that no kernel has."""

    def _dygraph_clip(self, pairs: Any) -> Any:
        return [(p, g * 0.5) for p, g in pairs]


@pytest.mark.parametrize(
    "how",
    [
        {"grad_clip": HalfOfIt()},
        {"grad_clip": ClipGradByValue(0.25, -0.5)},
        {"weight_decay": L1Decay(0.125)},
        {"attributes": {"regularizer": L1Decay(0.125)}, "weight_decay": 0.25},
        {"attributes": {"regularizer": L2Decay(0.125)}, "weight_decay": 0.25},
        {"weight_decay": L1Decay(0.125), "grad_clip": ClipGradByGlobalNorm(0.5)},
    ],
    ids=["clip", "limits", "l1", "l1-of-one", "l2-of-one", "l1-and-clip"],
)
@pytest.mark.parametrize("name", ["SGD", "Momentum", "Adam"])
def test_what_no_kernel_has_is_paddles_own(name: str, how: dict[str, Any]) -> None:
    assert both(name, **(RULES[name] | how)) < EXACT


def test_adamw_adds_the_regularisation_of_a_parameter() -> None:
    attributes = {"regularizer": L2Decay(0.25)}
    assert both("AdamW", **RULES["AdamW"], attributes=attributes) < EXACT


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "RMSProp", "Adadelta", "Adam", "Momentum"])
@pytest.mark.parametrize(
    "decays",
    [(0.25, 0.0), (0.25, L1Decay(0.125)), (L1Decay(0.125), L2Decay(0.25)), (L2Decay(0.25), None)],
    ids=["zero", "l1", "l1-l2", "none"],
)
def test_every_group_has_its_own_regularisation(name: str, decays: Any) -> None:
    def groups(params: list[Any]) -> Any:
        return [
            {"params": params[:2], "weight_decay": decays[0]},
            {"params": params[2:], "weight_decay": decays[1]},
        ]

    assert both(name, **(RULES[name] | {"weight_decay": None, "groups": groups})) < EXACT


def test_zero_decay_is_left_to_kernels() -> None:
    _, optimizer = trained(
        isostep.paddle,
        "Adam",
        groups=lambda p: [{"params": p[:2], "weight_decay": 0.0}, {"params": p[2:]}],
    )
    assert not optimizer._binding._apart


@pytest.mark.parametrize("name", RULES)
def test_a_clip_can_be_changed(name: str) -> None:
    def run(classes: Any) -> list[Any]:
        params, clip = parameters(), ClipGradByGlobalNorm(0.5)
        optimizer = getattr(classes, name)(parameters=params, grad_clip=clip, **RULES[name])
        take(optimizer, params, range(2))
        clip.clip_norm = 0.0625
        take(optimizer, params, range(2, 4))
        return params

    assert apart(run(paddle.optimizer), run(isostep.paddle)) < EXACT


def test_equal_clips_are_one_with_and_without_a_kernel() -> None:
    def groups(params: list[Any]) -> Any:
        return [
            {"params": params[:2], "grad_clip": ClipGradByGlobalNorm(0.5)},
            {"params": params[2:], "grad_clip": ClipGradByGlobalNorm(0.5)},
        ]

    how: dict[str, Any] = {"learning_rate": 0.125, "groups": groups}
    one, _ = trained(isostep.paddle, "SGD", **how)

    def beside(params: list[Any]) -> Any:
        made = groups(params)
        return [{**made[0], "weight_decay": L1Decay(0.0)}, made[1]]

    two, optimizer = trained(isostep.paddle, "SGD", **(how | {"groups": beside}))
    assert optimizer._binding._apart
    assert apart(one, two) < EXACT


def test_betas_may_be_tensors() -> None:
    def run(*betas: Any) -> list[Any]:
        params = parameters()
        take(isostep.paddle.Adam(0.125, *betas, parameters=params), params, range(3))
        return params

    tensors = [paddle.to_tensor([0.75]), paddle.to_tensor(0.9375)]
    assert apart(run(0.75, 0.9375), run(*tensors)) < EXACT


# -- AdamW's own -----------------------------------------------------------------------------------


def test_lr_ratio_scales_the_whole_step() -> None:
    """As Paddle's GPU kernel: with ratio 0 nothing moves, with 0.5 it is half the rate."""
    by_name = {"a": 0.0, "b": 0.5}
    params = parameters()
    names = {params[0].name: "a", params[1].name: "b"}
    how: dict[str, Any] = {"learning_rate": 0.25, "weight_decay": 0.25, "parameters": params}
    ratio = isostep.paddle.AdamW(lr_ratio=lambda p: by_name.get(names.get(p.name, ""), 1.0), **how)
    start = params[0].clone()
    take(ratio, params, range(5))
    assert apart([start], [params[0]]) == 0.0

    half = parameters()
    take(isostep.paddle.AdamW(0.125, weight_decay=0.25, parameters=half), half, range(5))
    assert apart([half[1]], [params[1]]) < EXACT
    whole = parameters()
    take(isostep.paddle.AdamW(0.25, weight_decay=0.25, parameters=whole), whole, range(5))
    assert apart([whole[2]], [params[2]]) < EXACT


def test_lr_ratio_is_asked_in_every_step() -> None:
    now = {"ratio": 1.0}
    params = parameters()
    optimizer = isostep.paddle.AdamW(0.25, parameters=params, lr_ratio=lambda p: now["ratio"])
    take(optimizer, params, range(2))
    before = [p.clone() for p in params]
    now["ratio"] = 0.0
    take(optimizer, params, range(2, 4))
    assert apart(before, params) == 0.0


def test_decay_is_chosen_by_name() -> None:
    chosen = parameters()[0].name.rpartition("_")[0]
    assert chosen  # Paddle's automatic names
    assert both("AdamW", **RULES["AdamW"], apply_decay_param_fun=_first) < EXACT


def _first(name: str) -> bool:
    return name.endswith("_0.w_0")


# -- Momentum's rescale_grad -------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, ClipGradByGlobalNorm(0.5), ClipGradByValue(0.25)])
def test_gradients_are_rescaled_after_clipping_and_before_decay(clip: Any) -> None:
    options: dict[str, Any] = {"learning_rate": 0.125, "weight_decay": 0.25}
    ours, _ = trained(
        isostep.paddle, "Momentum", steps=1, rescale_grad=0.5, grad_clip=clip, **options
    )
    params = parameters()
    pairs = list(zip(params, gradients(0), strict=True))
    pairs = pairs if clip is None else clip(pairs)
    for param, gradient in pairs:
        param.grad = gradient * 0.5
    isostep.paddle.Momentum(parameters=params, **options).step()
    assert apart(params, ours) < EXACT


def test_paddle_on_cpus_does_not_rescale() -> None:
    """Its documentation and its GPU kernel do; isostep follows these."""
    one, _ = trained(paddle.optimizer, "Momentum", learning_rate=0.125, rescale_grad=0.5)
    two, _ = trained(paddle.optimizer, "Momentum", learning_rate=0.125)
    assert apart(one, two) == 0.0


# -- entry points ----------------------------------------------------------------------------------


def test_minimize_and_apply_gradients_are_steps() -> None:
    def ways(way: str) -> list[Any]:
        params = parameters()
        optimizer = isostep.paddle.AdamW(0.125, parameters=params)
        for k in range(4):
            weights = gradients(k)
            loss = sum((p * w).sum() for p, w in zip(params, weights, strict=True))
            loss.backward()
            if way == "minimize":
                operations, pairs = optimizer.minimize(loss)
                assert operations == []
                assert len(pairs) == len(params)
            elif way == "apply_gradients":
                optimizer.apply_gradients(optimizer.backward(loss))
            else:
                optimizer.step()
            optimizer.clear_gradients()
        return params

    assert apart(ways("step"), ways("minimize")) == 0.0
    assert apart(ways("step"), ways("apply_gradients")) == 0.0


def test_minimize_takes_some_parameters_and_leaves_gradients() -> None:
    params = parameters()
    before = [p.clone() for p in params]
    optimizer = isostep.paddle.SGD(0.5, parameters=params)
    loss = sum((p * p).sum() for p in params)
    loss.backward()
    optimizer.minimize(loss, parameters=params[:2])
    moved = [apart([b], [p]) > 0 for b, p in zip(before, params, strict=True)]
    assert moved == [True, True, False, False]
    assert params[0].grad is not None


def test_minimize_goes_with_groups() -> None:
    params = parameters()
    optimizer = isostep.paddle.SGD(0.5, parameters=[{"params": params[:2]}, {"params": params[2:]}])
    loss = sum((p * p).sum() for p in params)
    loss.backward()
    _, pairs = optimizer.minimize(loss)
    assert len(pairs) == 4


def test_parameters_without_gradient_and_frozen_ones_stay() -> None:
    params = parameters()
    optimizer = isostep.paddle.AdamW(0.5, parameters=params)
    for p in params[:3]:
        p.grad = paddle.ones_like(p)
    params[1].stop_gradient = True
    before = [p.clone() for p in params]
    optimizer.step()
    moved = [apart([b], [p]) > 0 for b, p in zip(before, params, strict=True)]
    assert moved == [True, False, True, False]
    assert sorted(optimizer.state_dict()["isostep"]["steps"].values()) == [1, 1]


def test_gradients_may_come_and_go() -> None:
    def run(classes: Any) -> list[Any]:
        params = parameters()
        optimizer = classes.AdamW(0.125, weight_decay=0.25, parameters=params)
        for k in range(6):
            optimizer.clear_grad(set_to_zero=False)
            for place, (p, g) in enumerate(zip(params, gradients(k), strict=True)):
                if (k + place) % 3:
                    p.grad = g
            optimizer.step()
        return params

    assert apart(run(paddle.optimizer), run(isostep.paddle)) < EXACT


def test_a_closure_computes_the_loss_again() -> None:
    params = parameters()
    optimizer = isostep.paddle.SGD(0.125, parameters=params)

    def closure() -> Any:
        optimizer.clear_grad()
        loss = sum((p * p).sum() for p in params)
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert float(optimizer.step(closure)) < float(first)


def test_a_backward_through_overwritten_parameters_fails() -> None:
    params = parameters()
    optimizer = isostep.paddle.SGD(0.125, parameters=params)
    loss = (params[0] * params[0]).sum()
    params[0].grad = paddle.ones_like(params[0])
    optimizer.step()
    with pytest.raises(RuntimeError, match="version"):
        loss.backward()


# -- learning rates --------------------------------------------------------------------------------

SCHEDULERS: dict[str, Any] = {
    "Noam": lambda: lr.NoamDecay(d_model=8, warmup_steps=4),
    "Piecewise": lambda: lr.PiecewiseDecay([2, 4], [0.5, 0.25, 0.125]),
    "NaturalExp": lambda: lr.NaturalExpDecay(0.5, 0.1),
    "InverseTime": lambda: lr.InverseTimeDecay(0.5, 0.1),
    "Polynomial": lambda: lr.PolynomialDecay(0.5, 6),
    "LinearWarmup": lambda: lr.LinearWarmup(0.5, 3, 0.0, 0.5),
    "Exponential": lambda: lr.ExponentialDecay(0.5, 0.9),
    "MultiStep": lambda: lr.MultiStepDecay(0.5, [2, 4]),
    "Step": lambda: lr.StepDecay(0.5, 2),
    "Lambda": lambda: lr.LambdaDecay(0.5, lambda k: 0.9**k),
    "Multiplicative": lambda: lr.MultiplicativeDecay(0.5, lambda k: 0.9),
    "Cosine": lambda: lr.CosineAnnealingDecay(0.5, 6),
    "CosineRestarts": lambda: lr.CosineAnnealingWarmRestarts(0.5, 3),
    "OneCycle": lambda: lr.OneCycleLR(0.5, 8),
    "Cyclic": lambda: lr.CyclicLR(0.125, 0.5, 3),
    "Linear": lambda: lr.LinearLR(0.5, 6),
    "OnPlateau": lambda: lr.ReduceOnPlateau(0.5, patience=1),
}


def test_every_scheduler_of_paddle_is_tried() -> None:
    made = {type(make()) for make in SCHEDULERS.values()}
    known = {getattr(lr, name) for name in lr.__all__} - {lr.LRScheduler}
    assert made == known


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_set_the_rate(name: str) -> None:
    def run(classes: Any) -> list[Any]:
        params, scheduler = parameters(), SCHEDULERS[name]()
        optimizer = classes.Momentum(scheduler, 0.75, parameters=params)
        for k in range(8):
            take(optimizer, params, range(k, k + 1))
            scheduler.step(*([1.0] if name == "OnPlateau" else []))
        return params

    assert apart(run(paddle.optimizer), run(isostep.paddle)) < EXACT


def test_the_rate_can_be_set_and_replaced() -> None:
    params = parameters()
    optimizer = isostep.paddle.SGD(0.5, parameters=params)
    take(optimizer, params, range(1))
    optimizer.set_lr(0.0)
    before = [p.clone() for p in params]
    take(optimizer, params, range(1, 2))
    assert apart(before, params) == 0.0
    optimizer.set_lr_scheduler(lr.StepDecay(0.25, 1))
    assert optimizer.get_lr() == 0.25
    take(optimizer, params, range(2, 3))
    assert apart(before, params) > 0.0


# -- what isostep adds -----------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["native", "array"])
def test_a_moving_average_is_kept_and_can_be_looked_at(engine: str) -> None:
    params = parameters()
    optimizer = isostep.paddle.SGD(0.5, parameters=params, ema=EMA(0.75), engine=engine)
    expected = [p.numpy() for p in params]
    for k in range(4):
        take(optimizer, params, range(k, k + 1))
        expected = [0.75 * e + 0.25 * p.numpy() for e, p in zip(expected, params, strict=True)]
    kept = [p.numpy() for p in params]
    with optimizer.averaged_params():
        for p, e in zip(params, expected, strict=True):
            np.testing.assert_allclose(p.numpy(), e, rtol=1e-12)
    for p, k in zip(params, kept, strict=True):
        np.testing.assert_array_equal(p.numpy(), k)


@pytest.mark.parametrize("engine", ["native", "array"])
def test_a_bad_gradient_changes_no_bit_if_asked_for(engine: str) -> None:
    params = parameters()
    optimizer = isostep.paddle.AdamW(0.5, parameters=params, nonfinite="skip", engine=engine)
    take(optimizer, params, range(2))
    before = {k: v.numpy() for k, v in optimizer.state_dict().items() if k != "isostep"}
    kept = [p.numpy() for p in params]
    params[0].grad[1] = float("nan")
    optimizer.step()
    assert optimizer.skipped == 1
    after = optimizer.state_dict()
    assert after["isostep"]["steps"][params[0].name] == 2
    for key, value in before.items():
        np.testing.assert_array_equal(value, after[key].numpy())
    for p, k in zip(params, kept, strict=True):
        np.testing.assert_array_equal(p.numpy(), k)


@pytest.mark.parametrize("engine", ["native", "array"])
def test_a_bad_gradient_is_an_error_if_asked_for(engine: str) -> None:
    params = parameters()
    optimizer = isostep.paddle.SGD(0.5, parameters=params, nonfinite="raise", engine=engine)
    params[0].grad = paddle.full_like(params[0], float("inf"))
    before = params[0].numpy()
    with pytest.raises(ValueError, match="non-finite"):
        optimizer.step()
    np.testing.assert_array_equal(before, params[0].numpy())


@pytest.mark.parametrize("engine", ["native", "array"])
def test_a_step_is_measured_if_asked_for(engine: str) -> None:
    params = parameters()
    optimizer = isostep.paddle.SGD(0.5, parameters=params, report=True, engine=engine)
    norm = float(sum((p**2).sum() for p in params)) ** 0.5
    take(optimizer, params, range(1))
    measured = optimizer.report.groups[0]
    assert measured.param_norm == pytest.approx(norm, rel=1e-6)
    assert measured.update_norm == pytest.approx(0.5 * measured.grad_norm, rel=1e-6)


@pytest.mark.parametrize("name", OURS)
def test_the_plan_says_what_is_kept(name: str) -> None:
    params, optimizer = trained(isostep.paddle, name, steps=1, **OURS[name])
    planned = {
        (leaf.name, slot): shape
        for leaf in optimizer.plan().entries
        for slot, shape in leaf.slots.items()
    }
    names = optimizer.spelling.slots
    for (param, slot), (shape, dtype) in planned.items():
        held = optimizer._accumulators[names[slot]][param]
        assert tuple(held.shape) == tuple(shape)
        assert str(held.dtype).endswith(dtype)
    assert params


@pytest.mark.parametrize("name", OURS)
def test_both_engines_take_the_same_steps(name: str) -> None:
    how = OURS[name] | {"grad_clip": ClipGradByGlobalNorm(0.5), "ema": 0.75}
    native, one = trained(isostep.paddle, name, **how)
    array, two = trained(isostep.paddle, name, **how, engine="array")
    assert two.ran == ["array code, paddle"]
    assert apart(native, array) < EXACT
    state, other = one.state_dict(), two.state_dict()
    assert state.keys() == other.keys()
    assert state.pop("isostep") == other.pop("isostep")
    assert apart(list(state.values()), [other[key] for key in state]) < EXACT
