"""Programs and compiled training steps: the same steps as in a dynamic graph."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.nn import ClipGradByGlobalNorm, ClipGradByNorm, ClipGradByValue

import isostep.paddle
from isostep import EMA
from isostep.errors import HyperparameterError

from .twins import OURS, RULES

EXACT = 1e-12
STEPS = 7
BATCHES = np.random.default_rng(0).normal(size=(STEPS, 8, 4))
WEIGHTS = {
    "linear_0.w_0": np.random.default_rng(1).normal(size=(4, 5)),
    "linear_0.b_0": np.random.default_rng(2).normal(size=5),
    "linear_1.w_0": np.random.default_rng(3).normal(size=(5, 3)),
    "linear_1.b_0": np.random.default_rng(4).normal(size=3),
}


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    paddle.set_default_dtype("float64")
    yield
    paddle.disable_static()
    paddle.set_default_dtype("float32")


def layers() -> list[Any]:
    special = paddle.ParamAttr(learning_rate=0.5, need_clip=False)
    return [paddle.nn.Linear(4, 5), paddle.nn.Linear(5, 3, bias_attr=special)]


def forward(made: list[Any], x: Any) -> Any:
    return (made[1](paddle.tanh(made[0](x))) ** 2).mean()


def dynamic(classes: Any, name: str, **options: Any) -> dict[str, Any]:
    """Parameters and state after a dynamic training, by Paddle's names."""
    with paddle.utils.unique_name.guard():
        made = layers()
        params = [p for layer in made for p in layer.parameters()]
        for p in params:
            p.set_value(WEIGHTS[p.name])
        optimizer = getattr(classes, name)(parameters=params, **options)
        for x in BATCHES:
            forward(made, paddle.to_tensor(x)).backward()
            optimizer.step()
            optimizer.clear_grad()
        state = {k: v for k, v in optimizer.state_dict().items() if k != "isostep"}
        return {k: v.numpy() for k, v in state.items()} | {p.name: p.numpy() for p in params}


class Program:
    """A training program, its scope, and the optimizer in it."""

    def __init__(
        self, classes: Any, name: str, minimize: dict[str, Any] | None = None, **options: Any
    ) -> None:
        paddle.enable_static()
        self.main, self.startup = paddle.static.Program(), paddle.static.Program()
        with paddle.utils.unique_name.guard(), paddle.static.program_guard(self.main, self.startup):
            x = paddle.static.data("x", [8, 4], "float64")
            self.loss = forward(layers(), x)
            self.optimizer = getattr(classes, name)(**options)
            arguments = {"startup_program": self.startup} | (minimize or {})
            self.operations, self.pairs = self.optimizer.minimize(self.loss, **arguments)
        self.scope = paddle.static.Scope()
        self.executor = paddle.static.Executor(paddle.CPUPlace())
        with paddle.static.scope_guard(self.scope):
            self.executor.run(self.startup)
        for key, value in WEIGHTS.items():
            self.set(key, value)

    def set(self, name: str, value: Any) -> None:
        self.scope.find_var(name).get_tensor().set(value, paddle.CPUPlace())

    def run(self, batches: Any = BATCHES) -> dict[str, Any]:
        with paddle.static.scope_guard(self.scope):
            for x in batches:
                self.executor.run(self.main, feed={"x": x}, fetch_list=[self.loss])
            return {k: np.array(v) for k, v in self.main.state_dict().items()}


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    shared = one.keys() & other.keys()
    assert shared >= WEIGHTS.keys()
    return max(
        float(np.max(np.abs(one[k] - other[k])) / (np.max(np.abs(one[k])) + 1e-30)) for k in shared
    )


CLIPS = {
    "none": None,
    "global norm": ClipGradByGlobalNorm(0.25),
    "norm": ClipGradByNorm(0.25),
    "value": ClipGradByValue(0.0625),
}


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("name", OURS)
def test_a_program_takes_the_steps_of_a_dynamic_graph(name: str, clip: str) -> None:
    how = OURS[name] | {"grad_clip": CLIPS[clip]}
    found = Program(isostep.paddle, name, **how).run()
    paddle.disable_static()
    expected = dynamic(isostep.paddle, name, **how)
    assert found.keys() >= expected.keys()
    assert apart(expected, found) < EXACT


@pytest.mark.parametrize("name", RULES)
def test_a_program_keeps_what_paddles_program_keeps(name: str) -> None:
    ours = Program(isostep.paddle, name, **RULES[name]).run(BATCHES[:1])
    theirs = Program(paddle.optimizer, name, **RULES[name]).run(BATCHES[:1])
    assert ours.keys() == theirs.keys()
    assert apart(theirs, ours) < 1e-6  # Paddle's programs hold numbers in float32


def test_minimize_returns_what_was_added_and_the_pairs() -> None:
    made = Program(isostep.paddle, "SGD", learning_rate=0.5)
    assert {p.name for p, _ in made.pairs} == WEIGHTS.keys()
    assert made.operations
    assert all(operation in made.main.global_block().ops for operation in made.operations)


def test_parameters_can_be_left_out() -> None:
    paddle.enable_static()
    main, startup = paddle.static.Program(), paddle.static.Program()
    with paddle.utils.unique_name.guard(), paddle.static.program_guard(main, startup):
        made = layers()
        loss = forward(made, paddle.static.data("x", [8, 4], "float64"))
        optimizer = isostep.paddle.SGD(0.5)
        _, pairs = optimizer.minimize(
            loss, parameters=made[1].parameters(), no_grad_set={made[1].bias}
        )
    assert {p.name for p, _ in pairs} == {"linear_1.w_0"}


def test_groups_work_in_programs() -> None:
    """Where Paddle knows them in dynamic graphs alone."""

    def build(static: bool) -> Any:
        made = layers()
        groups = [
            {"params": made[0].parameters(), "weight_decay": 0.25},
            {"params": made[1].parameters(), "learning_rate": 0.5, "beta1": 0.5},
        ]
        return made, isostep.paddle.AdamW(0.125, parameters=groups)

    with paddle.utils.unique_name.guard():
        made, optimizer = build(False)
        for layer in made:
            for p in layer.parameters():
                p.set_value(WEIGHTS[p.name])
        for x in BATCHES:
            forward(made, paddle.to_tensor(x)).backward()
            optimizer.step()
            optimizer.clear_grad()
        expected = {p.name: p.numpy() for layer in made for p in layer.parameters()}
    paddle.enable_static()
    main, startup = paddle.static.Program(), paddle.static.Program()
    with paddle.utils.unique_name.guard(), paddle.static.program_guard(main, startup):
        x = paddle.static.data("x", [8, 4], "float64")
        made, optimizer = build(True)
        loss = forward(made, x)
        optimizer.minimize(loss)
    executor, scope = paddle.static.Executor(paddle.CPUPlace()), paddle.static.Scope()
    with paddle.static.scope_guard(scope):
        executor.run(startup)
        for key, value in WEIGHTS.items():
            scope.find_var(key).get_tensor().set(value, paddle.CPUPlace())
        for x in BATCHES:
            executor.run(main, feed={"x": x})
        found = {k: np.array(v) for k, v in main.state_dict().items()}
    assert apart(expected, found) < EXACT


def test_a_variable_as_the_rate_of_a_parameter_is_the_rate_itself() -> None:
    results: list[Any] = []
    for classes in (paddle.optimizer, isostep.paddle):
        paddle.enable_static()
        main, start = paddle.static.Program(), paddle.static.Program()
        with paddle.static.program_guard(main, start):
            rate = paddle.static.data("rate", [1], "float64")
            half = paddle.nn.initializer.Constant(0.5)
            w = paddle.static.create_parameter([3], "float64", default_initializer=half)
            w.optimize_attr["learning_rate"] = rate
            loss = (w * paddle.to_tensor(WEIGHTS["linear_1.b_0"])).sum()
            classes.Momentum(learning_rate=0.1, momentum=0.5).minimize(loss)
        executor = paddle.static.Executor()
        executor.run(start)
        for value in (0.25, 0.125):
            [found] = executor.run(main, feed={"rate": np.array([value])}, fetch_list=[w])
        results.append(found)
    assert np.abs(results[0] - 0.5).max() > 0.1
    np.testing.assert_allclose(results[1], results[0], rtol=EXACT)


def test_a_scheduler_sets_the_rate_of_a_program() -> None:
    def ours(make: Any) -> dict[str, Any]:
        rate = paddle.optimizer.lr.StepDecay(0.5, 2, 0.5)
        program = make(rate)
        for x in BATCHES:
            found = program.run([x])
            rate.step()
        return found

    one = ours(lambda rate: Program(isostep.paddle, "SGD", learning_rate=rate))
    two = ours(lambda rate: Program(paddle.optimizer, "SGD", learning_rate=rate))
    assert apart(two, one) < 1e-6
    constant = Program(isostep.paddle, "SGD", learning_rate=0.5).run()
    assert apart(constant, one) > 1e-3


def test_a_programs_average_follows_its_parameters() -> None:
    found = Program(isostep.paddle, "AdamW", **RULES["AdamW"], ema=0.75).run()
    paddle.disable_static()
    expected = dynamic(isostep.paddle, "AdamW", **RULES["AdamW"], ema=0.75)
    assert any("average" in key for key in expected)
    assert apart(expected, found) < EXACT


def test_a_program_skips_bad_gradients_if_asked_for() -> None:
    made = Program(isostep.paddle, "AdamW", **RULES["AdamW"], nonfinite="skip")
    before = made.run(BATCHES[:2])
    bad = BATCHES[2].copy()
    bad[0, 0] = np.nan
    after = made.run([bad])
    for key, value in before.items():
        np.testing.assert_array_equal(value, after[key])
    assert apart(after, made.run(BATCHES[2:3])) > 1e-3


def test_a_state_of_paddles_program_goes_on() -> None:
    """The count is read from the powers, which is all that it has."""
    whole = Program(paddle.optimizer, "Adam", **RULES["Adam"]).run()
    half = Program(paddle.optimizer, "Adam", **RULES["Adam"]).run(BATCHES[:4])
    ours = Program(isostep.paddle, "Adam", **RULES["Adam"])
    for key, value in half.items():
        ours.set(key, value)
    found = ours.run(BATCHES[4:])
    assert apart(whole, found) < 1e-6
    np.testing.assert_allclose(found["linear_0.w_0_beta2_pow_acc_0"], 0.9375 ** (STEPS + 1))


@pytest.mark.parametrize("name", RULES)
def test_files_of_programs_go_on_in_either(name: str, tmp_path: Path) -> None:
    whole = Program(paddle.optimizer, name, **RULES[name]).run()
    for first, then in ((paddle.optimizer, isostep.paddle), (isostep.paddle, paddle.optimizer)):
        one, two = (Program(c, name, **RULES[name]) for c in (first, then))
        one.run(BATCHES[:4])
        with paddle.static.scope_guard(one.scope):
            paddle.static.save(one.main, str(tmp_path / "half"))
        with paddle.static.scope_guard(two.scope):
            paddle.static.load(two.main, str(tmp_path / "half"), two.executor)
        assert apart(whole, two.run(BATCHES[4:])) < 1e-6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"report": True}, "report=True"),
        ({"nonfinite": "raise"}, "raise"),
        ({"ema": EMA(0.5, start="initial")}, "first_update"),
    ],
)
def test_what_a_program_cannot_do_is_refused(options: Any, words: str) -> None:
    with pytest.raises(HyperparameterError, match=words):
        Program(isostep.paddle, "SGD", learning_rate=0.5, **options)


def test_amp_scales_the_loss_of_a_program() -> None:
    """`found_inf` stops a step, powers and count included."""
    paddle.enable_static()
    main, startup = paddle.static.Program(), paddle.static.Program()
    with paddle.utils.unique_name.guard(), paddle.static.program_guard(main, startup):
        x = paddle.static.data("x", [8, 4], "float64")
        stop = paddle.static.data("stop", [1], "bool")
        loss = forward(layers(), x)
        optimizer = isostep.paddle.Adam(0.5)
        optimizer._set_auxiliary_var("found_inf", stop)
        optimizer.minimize(loss)
    executor, scope = paddle.static.Executor(paddle.CPUPlace()), paddle.static.Scope()
    with paddle.static.scope_guard(scope):
        executor.run(startup)

        def run(stops: bool) -> dict[str, Any]:
            executor.run(main, feed={"x": BATCHES[0], "stop": np.array([stops])})
            return {k: np.array(v) for k, v in main.state_dict().items()}

        one, two, three = run(False), run(True), run(False)
    for key, value in one.items():
        np.testing.assert_array_equal(value, two[key])
    assert apart(two, three) > 1e-3


def test_a_compiled_training_step_is_stepped_by_kernels() -> None:
    """`to_static` leaves backward and step to the dynamic graph."""

    def run(compiled: bool) -> tuple[list[float], Any]:
        with paddle.utils.unique_name.guard():
            made = layers()
            params = [p for layer in made for p in layer.parameters()]
            for p in params:
                p.set_value(WEIGHTS[p.name])
            optimizer = isostep.paddle.AdamW(0.125, parameters=params)

            def train(x: Any) -> Any:
                loss = forward(made, x)
                loss.backward()
                optimizer.step()
                optimizer.clear_grad()
                return loss

            if compiled:
                train = paddle.jit.to_static(train, full_graph=False)
            return [float(train(paddle.to_tensor(x))) for x in BATCHES], optimizer

    losses, optimizer = run(True)
    assert losses == run(False)[0]
    assert optimizer.ran == ["native flat float64"]
