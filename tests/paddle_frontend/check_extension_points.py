"""What a subclass overrides: every method of Paddle's classes, against Paddle's own; and parameters
that are given twice, which Paddle's own step updates twice."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
import pytest

import isostep.paddle
from isostep import HyperparameterError, dialects
from isostep.errors import ParameterError

from .twins import OURS, RULES, apart, gradients, parameters, take

POINTS = dialects.get("paddle").extension_points
OWN = ["paddle.optimizer"]


def methods(name: str) -> list[str]:
    cls = getattr(paddle.optimizer, name)
    found = [m for m in dir(cls) if inspect.isroutine(getattr(cls, m))]
    return [m for m in found if m == "__init__" or not m.startswith("__")]


def recording(base: Any, names: Sequence[str], calls: Counter[str]) -> Any:
    """A subclass that overrides methods; each call halves the first parameter as well."""

    def override(name: str) -> Callable[..., Any]:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            if (
                paddle.in_dynamic_mode()
                and len(names) == 1
                and self.__dict__.get("first") is not None
            ):
                self.first.set_value(self.first * 0.5)
            return getattr(super(made, self), name)(*args, **kwargs)

        return method

    made: Any = type(base.__name__, (base,), {name: override(name) for name in names})
    return made


def as_a_list(cls: Any, options: dict[str, Any]) -> tuple[list[Any], Any]:
    """Steps, and all else that a training script does with an optimizer."""
    return _train(cls, options, parameters())


def as_groups(cls: Any, options: dict[str, Any]) -> tuple[list[Any], Any]:
    params = parameters()
    groups = [{"params": params[:1]}, {"params": params[1:], "learning_rate": 0.5}]
    return _train(cls, options, params, groups)


def together(cls: Any, options: dict[str, Any]) -> tuple[list[Any], Any]:
    params = parameters("float32")  # Paddle has no other kernel for it
    return _train(cls, options | {"use_multi_tensor": True}, params, dtype="float32")


def _train(
    cls: Any, options: dict[str, Any], params: list[Any], groups: Any = None, dtype: str = "float64"
) -> tuple[list[Any], Any]:
    # Of a group alone Paddle takes the global norm, isostep of all: another clip for groups.
    clip = paddle.nn.ClipGradByValue(0.5) if groups else paddle.nn.ClipGradByGlobalNorm(1.0)
    optimizer = cls(parameters=groups or params, grad_clip=clip, **options)
    optimizer.first = params[0]
    take(optimizer, params, range(2), dtype)
    for param, gradient in zip(params, gradients(2, dtype), strict=True):
        param.grad = gradient
    if not groups:
        optimizer.minimize(params[0].sum())
    optimizer.clear_grad()
    optimizer.set_state_dict(optimizer.state_dict())
    take(optimizer, params, range(1), dtype)
    return params, optimizer


def in_a_program(cls: Any, options: dict[str, Any]) -> tuple[list[Any], Any]:
    paddle.enable_static()
    try:
        main, start = paddle.static.Program(), paddle.static.Program()
        with paddle.static.program_guard(main, start):
            x = paddle.static.data("x", [2, 3])
            layer = paddle.nn.Linear(3, 3, bias_attr=paddle.nn.initializer.Constant(0.5))
            optimizer = cls(**options)
            optimizer.minimize((layer(x) ** 2).mean())
            executor = paddle.static.Executor()
            executor.run(start)
            executor.run(main, feed={"x": np.ones((2, 3), "float32")})
            [bias] = executor.run(
                main, feed={"x": np.ones((2, 3), "float32")}, fetch_list=[layer.bias]
            )
    finally:
        paddle.disable_static()
    return [paddle.to_tensor(bias.shape)], optimizer  # weights are random


MODES = {"list": as_a_list, "groups": as_groups, "together": together, "program": in_a_program}
TOGETHER = ("Momentum", "Adam")
RUNS = [(name, mode) for name in RULES for mode in MODES if mode != "together" or name in TOGETHER]


def drive(classes: Any, name: str, mode: str, overridden: Sequence[str]) -> Any:
    calls: Counter[str] = Counter()
    made = recording(getattr(classes, name), overridden, calls)
    with paddle.utils.unique_name.guard():
        params, optimizer = MODES[mode](made, RULES[name])
    return calls, params, optimizer


@pytest.mark.parametrize(("name", "mode"), RUNS)
def test_every_override_is_called_as_often_as_in_paddle(name: str, mode: str) -> None:
    theirs, a, _ = drive(paddle.optimizer, name, mode, methods(name))
    ours, b, _ = drive(isostep.paddle, name, mode, methods(name))
    assert {m: ours[m] for m in methods(name)} == {m: theirs[m] for m in methods(name)}
    assert apart(a, b) == 0.0


CALLED = [(mode, method) for mode in MODES for method in methods("Adam")]


@pytest.mark.parametrize(("mode", "method"), CALLED)
def test_each_override_has_its_effect_and_only_those_of_the_step_cost_speed(
    mode: str, method: str
) -> None:
    theirs, a, _ = drive(paddle.optimizer, "Adam", mode, [method])
    ours, b, optimizer = drive(isostep.paddle, "Adam", mode, [method])
    assert ours == theirs
    assert apart(a, b) < (2e-6 if mode == "together" else 1e-9)  # float32, float64
    if mode != "program":
        assert (optimizer.ran == OWN) is (method in POINTS)


@pytest.mark.parametrize("point", POINTS)
def test_a_method_set_on_the_object_counts_at_once(point: str) -> None:
    params = parameters()
    optimizer = isostep.paddle.Adam(parameters=params)
    take(optimizer, params, range(1))
    assert "native" in optimizer.ran[0]
    setattr(optimizer, point, getattr(optimizer, point))
    take(optimizer, params, range(1, 2))
    assert optimizer.ran == OWN


@pytest.mark.parametrize(
    "extra", [{"ema": 0.9}, {"nonfinite": "skip"}, {"clip_per_group": True}, {"report": True}]
)
def test_what_paddles_own_step_lacks_is_refused_beside_an_override(extra: dict[str, Any]) -> None:
    class Mine(isostep.paddle.AdamW):
        def _finish_update(self, block: Any, pairs: Any) -> None:
            pass

    with pytest.raises(
        HyperparameterError, match=rf"{next(iter(extra))}.*overrides _finish_update"
    ):
        Mine(parameters=parameters(), **extra)


def test_a_step_that_paddle_does_not_have_is_refused_with_the_class() -> None:
    with pytest.raises(TypeError, match="Mine overrides _finish_update, which nothing calls"):

        class Mine(isostep.paddle.Adafactor):
            def _finish_update(self, block: Any, pairs: Any) -> None:
                pass

    class Whole(isostep.paddle.Adafactor):
        def _append_optimize_op(self, block: Any, pair: Any) -> None:
            pair[0].set_value(pair[0] * 0.5)

    params = parameters()
    before = params[0].numpy()
    optimizer = Whole(parameters=params)
    take(optimizer, params, range(1))
    assert (params[0].numpy() == before * 0.5).all()


# -- the same parameter twice ----------------------------------------------------------------------


def _twice(classes: Any, name: str, how: str) -> tuple[list[Any], Any]:
    with paddle.utils.unique_name.guard():
        params = parameters()
        given: Any = [*params, params[0]]
        if how == "groups":
            given = [{"params": [params[0], params[0]]}, {"params": params[1:]}]
        if how == "call":
            given = params
        clip = paddle.nn.ClipGradByGlobalNorm(1.0)
        optimizer = getattr(classes, name)(parameters=given, grad_clip=clip, **RULES[name])
        for step in range(3):
            for param, gradient in zip(params, gradients(step), strict=True):
                param.grad = gradient
            if how == "call":
                pairs = [(p, p.grad) for p in params]
                optimizer.apply_gradients([*pairs, (params[0], params[0].grad * 2)])
            else:
                optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("how", ["list", "groups", "call"])
def test_a_parameter_that_is_given_twice_is_stepped_twice(name: str, how: str) -> None:
    theirs, _ = _twice(paddle.optimizer, name, how)
    ours, optimizer = _twice(isostep.paddle, name, how)
    assert apart(theirs, ours) == 0.0
    assert optimizer.ran == OWN


@pytest.mark.parametrize("name", OURS)
def test_a_step_after_one_that_was_left_to_paddle(name: str) -> None:
    if name == "Adafactor":  # which Paddle does not have
        with pytest.raises(ParameterError, match=r"no Adafactor.*give each parameter once"):
            isostep.paddle.Adafactor(parameters=parameters()[:1] * 2)
        return
    results: list[list[Any]] = []
    for classes in (paddle.optimizer, isostep.paddle):
        params = parameters()
        optimizer = getattr(classes, name)(parameters=params, **RULES[name])
        for step in range(0, 6, 2):
            take(optimizer, params, range(step, step + 1))
            assert classes is paddle.optimizer or "native" in optimizer.ran[0]
            pairs = list(zip(params, gradients(step + 1), strict=True))
            optimizer.apply_gradients([*pairs, pairs[0]])
        results.append(params)
    assert apart(*results) < 1e-6  # Paddle's powers of the betas are float32


# -- programs --------------------------------------------------------------------------------------


def _minimized(make: Callable[[], Any]) -> Any:
    """A bias after three steps in a program."""
    paddle.enable_static()
    try:
        main, start = paddle.static.Program(), paddle.static.Program()
        with paddle.static.program_guard(main, start), paddle.utils.unique_name.guard():
            x = paddle.static.data("x", [2, 2], "float32")
            layer = paddle.nn.Linear(2, 3, bias_attr=paddle.nn.initializer.Constant(0.5))
            loss = paddle.mean(layer(x))
            make().minimize(loss)
        executor = paddle.static.Executor()
        executor.run(start)
        for _ in range(3):
            [bias] = executor.run(main, feed={"x": np.ones((2, 2), "f4")}, fetch_list=[layer.bias])
        return bias
    finally:
        paddle.disable_static()


def test_a_program_of_paddles_old_form_gets_paddles_own_step() -> None:
    with paddle.pir_utils.OldIrGuard():
        found = [
            _minimized(lambda c=c: c.AdamW(learning_rate=0.25, weight_decay=0.25))
            for c in (paddle.optimizer, isostep.paddle)
        ]
        with pytest.raises(HyperparameterError, match=r"ema: .*FLAGS_enable_pir_api"):
            _minimized(lambda: isostep.paddle.AdamW(ema=0.9))
    assert (found[0] == found[1]).all()
    assert (np.abs(found[0] - 0.5) > 0.1).all()


def test_a_variable_as_a_hyperparameter_of_a_program_gets_paddles_own_step() -> None:
    def beta() -> Any:
        start = paddle.nn.initializer.Constant(0.75)
        return paddle.pir.core.create_parameter("float32", [1], initializer=start)

    found = [
        _minimized(lambda c=c: c.Adam(learning_rate=0.25, beta1=beta(), beta2=beta()))
        for c in (paddle.optimizer, isostep.paddle)
    ]
    assert (found[0] == found[1]).all()
    with pytest.raises(HyperparameterError, match=r"nonfinite: .* variable .* give a number"):
        _minimized(lambda: isostep.paddle.Adam(beta1=beta(), nonfinite="skip"))


@pytest.mark.parametrize("how", ["minimize", "apply_gradients"])
def test_a_parameter_that_is_given_twice_in_a_program(how: str) -> None:
    def made(classes: Any) -> Any:
        optimizer = classes.Adam(learning_rate=0.25)

        def minimize(loss: Any) -> None:
            pairs = optimizer.backward(loss)
            if how == "minimize":
                optimizer.minimize(loss, parameters=[p for p, _ in pairs] * 2)
            else:
                optimizer.apply_gradients(pairs * 2)

        return SimpleNamespace(minimize=minimize)

    theirs, ours = (_minimized(lambda c=c: made(c)) for c in (paddle.optimizer, isostep.paddle))
    assert (theirs == ours).all()
    assert (np.abs(theirs - 0.5) > 1.25).all()  # six steps
