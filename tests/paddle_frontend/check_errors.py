"""Wrong calls: Paddle's own answer where it has one, else one that says what to do."""

from __future__ import annotations

from typing import Any

import paddle
import pytest

import isostep.paddle
from isostep.errors import HyperparameterError, ParameterError

from .twins import parameters

SAME: dict[str, Any] = {
    "beta1": (ValueError, lambda m, p: m.AdamW(beta1=1.0, parameters=p)),
    "beta2": (ValueError, lambda m, p: m.Adam(beta2=-0.1, parameters=p)),
    "epsilon": (ValueError, lambda m, p: m.AdamW(epsilon=-1.0, parameters=p)),
    "a tensor": (TypeError, lambda m, p: m.SGD(parameters=p[0])),
    "a dict": (TypeError, lambda m, p: m.SGD(parameters={"params": p})),
    "nothing": (AttributeError, lambda m, p: m.AdamW()),
    "a rate": (TypeError, lambda m, p: m.SGD(learning_rate=1, parameters=p)),
    "a clip": (TypeError, lambda m, p: m.AdamW(grad_clip=1.0, parameters=p)),
    "no params": (AssertionError, lambda m, p: m.AdamW(parameters=[{"weight_decay": 0.5}])),
    "a set": (TypeError, lambda m, p: m.AdamW(parameters=[{"params": set(p)}])),
    "twice": (ValueError, lambda m, p: m.AdamW(parameters=[{"params": p}, {"params": p[:1]}])),
    "set_lr": (TypeError, lambda m, p: m.AdamW(parameters=p).set_lr("fast")),
    "set_lr under a scheduler": (
        RuntimeError,
        lambda m, p: m.SGD(paddle.optimizer.lr.StepDecay(0.5, 2), parameters=p).set_lr(0.5),
    ),
    "set_lr_scheduler": (TypeError, lambda m, p: m.SGD(parameters=p).set_lr_scheduler(0.5)),
    "an argument": (TypeError, lambda m, p: m.SGD(parameters=p, learning=0.5)),
    "minimize": (AssertionError, lambda m, p: m.SGD(parameters=p).minimize(0.5)),
}


@pytest.mark.parametrize("name", SAME)
def test_errors_are_those_of_paddle(name: str) -> None:
    kind, call = SAME[name]
    said: list[str] = []
    for classes in (paddle.optimizer, isostep.paddle):
        with pytest.raises(kind) as caught:
            call(classes, parameters("float32"))
        assert type(caught.value) is kind
        said.append(str(caught.value))
    if name != "an argument":
        assert said[0] == said[1]


def test_lr_ratio_works_where_paddle_refuses() -> None:
    with pytest.raises(NotImplementedError):
        paddle.optimizer.AdamW(parameters=parameters(), lr_ratio=lambda p: 0.5)
    isostep.paddle.AdamW(parameters=parameters(), lr_ratio=lambda p: 0.5)
    with pytest.raises(TypeError, match="lr_ratio"):
        isostep.paddle.AdamW(parameters=parameters(), lr_ratio=0.5)


OWN: dict[str, Any] = {
    "nonfinite": (HyperparameterError, "nonfinite='warn'", {"nonfinite": "warn"}),
    "engine": (HyperparameterError, "engine='cuda'", {"engine": "cuda"}),
    "momentum of the average": (HyperparameterError, "momentum", {"ema": 1.5}),
}


@pytest.mark.parametrize("name", OWN)
def test_isosteps_own_errors_say_what_is_allowed(name: str) -> None:
    kind, words, options = OWN[name]
    with pytest.raises(kind, match=words):
        isostep.paddle.SGD(parameters=parameters(), **options)


def test_a_rate_that_is_no_ratio_is_refused_and_nothing_moves() -> None:
    params, now = parameters(), {"ratio": 1.0}
    optimizer = isostep.paddle.AdamW(parameters=params, lr_ratio=lambda p: now["ratio"])
    params[0].grad = paddle.ones_like(params[0])
    before = params[0].clone()
    now["ratio"] = -1.0
    with pytest.raises(HyperparameterError, match="lr_ratio"):
        optimizer.step()
    assert bool((before == params[0]).all())


@pytest.mark.parametrize("rate", [float("inf"), float("nan")])
def test_a_rate_that_is_not_finite_is_refused_and_nothing_moves(rate: float) -> None:
    params = parameters()
    optimizer = isostep.paddle.AdamW(parameters=params)
    params[0].grad = paddle.ones_like(params[0])
    optimizer.step()
    before = params[0].clone()
    optimizer.set_lr(rate)
    with pytest.raises(HyperparameterError, match=f"is {rate} after 1 steps: it must be finite"):
        optimizer.step()
    assert bool((before == params[0]).all())


class DygraphShardingOptimizer:
    """As Paddle's: it has another optimizer step this process's part."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def step(self) -> None:
        self.inner.step()


@pytest.mark.parametrize("options", [{"nonfinite": "skip"}, {"report": True}], ids=str)
def test_what_spans_parameters_is_refused_in_a_part_of_a_model(options: dict[str, Any]) -> None:
    params = parameters()
    for p in params:
        p.grad = paddle.ones_like(p)
    before = [p.numpy() for p in params]
    optimizer = isostep.paddle.AdamW(parameters=params, **options)
    with pytest.raises(HyperparameterError, match="DygraphShardingOptimizer gives it a part"):
        DygraphShardingOptimizer(optimizer).step()
    params[0].is_distributed = True
    with pytest.raises(HyperparameterError, match="parameter 0 is a shard of Paddle's tensor"):
        optimizer.step()
    assert all((b == p.numpy()).all() for b, p in zip(before, params, strict=True))
    params[0].is_distributed = False
    optimizer.step()
    assert all((b != p.numpy()).any() for b, p in zip(before, params, strict=True))


def test_parameters_that_no_kernel_steps_are_refused() -> None:
    whole = paddle.to_tensor([1j, 2j, 3j], stop_gradient=False)
    whole.grad = paddle.ones([3], "complex64")
    with pytest.raises(ValueError, match="complex64"):
        isostep.paddle.SGD(parameters=[whole]).step()


def test_two_parameters_of_one_name_are_refused() -> None:
    made: list[Any] = []
    for width in (3, 5):
        with paddle.utils.unique_name.guard():
            made += paddle.nn.Linear(2, width).parameters()
    optimizer = isostep.paddle.Momentum(parameters=made)
    for p in made:
        p.grad = paddle.ones_like(p)
    before = [p.numpy() for p in made]
    with pytest.raises(ParameterError, match=r"two parameters are called 'linear_0\.w_0'"):
        optimizer.step()
    assert all((b == p.numpy()).all() for b, p in zip(before, made, strict=True))


def test_programs_have_no_step_of_a_dynamic_graph() -> None:
    optimizer = isostep.paddle.SGD(parameters=parameters())
    paddle.enable_static()
    try:
        with pytest.raises(AssertionError, match="step"):
            optimizer.step()
        with pytest.raises(ParameterError, match="no parameters"):
            isostep.paddle.SGD(0.5).plan()
    finally:
        paddle.disable_static()


def bad_group(**settings: Any) -> Any:
    return lambda p: isostep.paddle.AdamW(parameters=[{"params": p, **settings}])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (bad_group(beta1=1.5), "beta1=1.5"),
        (bad_group(weight_decay=paddle.regularizer.L1Decay(0.5)), "weight_decay"),
        (bad_group(learning_rate=[0.5]), "learning_rate"),
        (lambda p: isostep.paddle.AdamW(parameters=p, weight_decay=float("nan")), "weight_decay"),
        (lambda p: isostep.paddle.AdamW(parameters=p, apply_decay_param_fun=3), "decay_param_fun"),
        (
            lambda p: isostep.paddle.SGD(
                parameters=p, grad_clip=paddle.nn.ClipGradByGlobalNorm(0.0)
            ),
            "global_norm",
        ),
    ],
)
def test_settings_are_checked_when_an_optimizer_is_made(make: Any, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        make(parameters("float32"))


def test_averages_must_have_been_asked_for() -> None:
    optimizer = isostep.paddle.SGD(parameters=parameters())
    with pytest.raises(HyperparameterError, match="ema"), optimizer.averaged_params():
        pass


@pytest.mark.parametrize("argument", ["beta2_decay", "epsilon1", "clip_threshold"])
def test_adafactor_checks_its_own_arguments(argument: str) -> None:
    value = 0.5 if argument == "beta2_decay" else -0.5
    with pytest.raises(HyperparameterError, match=argument):
        isostep.paddle.Adafactor(parameters=parameters(), **{argument: value})
