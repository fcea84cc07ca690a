"""Denormal numbers: kernels flush them where that cannot be felt, and only there."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import isostep
from isostep import dialects, flushing, rules
from isostep.coefficients import Folded
from isostep.compile.arrays import Array
from isostep.tracing import trace

from .fuzzing import many
from .rounding import SMALLEST, Twin
from .table import BY_NAME, DTYPES, FORMS, RECIPES, AnyArray, Config
from .test_properties import assert_engines_agree
from .test_tenth_rule import CROSS, LION

EPSILONS = ("eps", "eps_root", "eps1", "eps2")
PLACES = {"vector": (33,), "matrix": (4, 7), "kernel": (3, 2, 3, 3)}
TENTHS = {"float32": 45, "float64": 323}  # the exponents of the smallest denormal numbers
CONFIGS = [*FORMS, *(c for c in RECIPES if c.clip and c.dialect == "torch")]


@st.composite
def small_problems(draw: st.DrawFn) -> tuple[Config, dict[str, AnyArray], list[dict[str, Any]]]:
    """A rule with an epsilon between none and 1e-3, and gradients from the smallest number to 1."""
    config = draw(st.sampled_from(CONFIGS))
    dtype = draw(st.sampled_from(list(TENTHS)))
    lowest = TENTHS[dtype]
    # Squares are denormal, and so is what stands beside a felt epsilon, at half the exponents.
    exponent = st.one_of(st.integers(-lowest, 0), st.integers(-lowest * 3 // 5, -lowest * 2 // 5))
    epsilon = st.one_of(st.just(0.0), st.integers(-lowest, -3).map(lambda e: 10.0**e))
    h = {name: draw(epsilon) for name in EPSILONS if name in config.h}
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = 10.0 ** draw(exponent)

    def array(shape: tuple[int, ...], size: float, spread: float = 0.0) -> AnyArray:
        values = random.normal(size=shape) * size * 10.0 ** random.uniform(-spread, 0, shape)
        return values.astype(dtype)

    params = {name: array(shape, 1.0, 2) for name, shape in PLACES.items()}
    params["zero"] = np.zeros(5, dtype)
    params["denormal"] = np.full(5, SMALLEST[dtype] / 64, dtype)
    spread = draw(st.sampled_from([0, 3, 40]))
    steps = [{n: array(p.shape, size, spread) for n, p in params.items()} for _ in range(3)]
    return Config("drawn", config.rule, {**config.h, **h}, clip=config.clip), params, steps


@pytest.mark.fuzz
@many(150)
@given(small_problems())
def test_engines_agree_for_any_epsilon_and_any_gradient(problem: Any) -> None:
    assert_engines_agree(*problem)


@pytest.mark.fuzz
@many(150)
@given(small_problems())
def test_where_numbers_are_flushed_nobody_can_tell(problem: Any) -> None:
    """Of one step rounding may lead a parameter as far astray as flushing does, or as the root of
    the smallest normal number, which is lost beside all parameters above 1e-12 (1e-138 in
    float64)."""
    config, params, steps = problem
    optimizer = config.optimizer(params, engine="native")
    for grads in steps:
        right, flushed = (Twin(optimizer, flushes) for flushes in (False, True))
        right.step(grads)
        flushed.step(grads)
        optimizer.step(grads)
        if not all(runner.flushes for runner in optimizer._stepper.last):
            return
        exact, found = right.bounds(), flushed.bounds()
        for name, p in params.items():
            least = 16 * np.sqrt(SMALLEST[p.dtype.name])
            known = np.isfinite(exact[name])
            assert np.all(found[name][known] <= 4 * exact[name][known] + least), name


def flushes(optimizer: isostep.Optimizer, dtype: str = "float32") -> bool:
    """Whether a step of this optimizer flushes."""
    stepper = optimizer._stepper
    leaf = stepper.leaves[0]
    recipe = stepper.recipe(leaf)
    arrays = [Array("grad", dtype), *(Array(n, a.dtype.name) for n, a in leaf.arrays.items())]
    coefficients = Folded(partial(stepper._fold, 1.0)).alone(0, 1, dtype)
    return flushing.unfelt(flushing.bounds(flushing.guards(recipe), arrays), coefficients)


@pytest.mark.parametrize("config", FORMS, ids=str)
def test_a_guard_is_a_coefficient_that_the_kernel_reads(config: Config) -> None:
    for shape in ((3,), (3, 4)):
        stepper = config.optimizer({"p": np.ones(shape)})._stepper
        recipe = stepper.recipe(stepper.leaves[0])
        read = {node.name for node in trace(recipe).inputs}
        for group in flushing.guards(recipe) or ():
            assert {guard.coefficient for guard in group} <= read


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dialect", ["torch", "keras", "tf_keras", "paddle", "optax"])
def test_with_the_defaults_of_every_framework_numbers_are_flushed(dialect: str, dtype: str) -> None:
    """But in optax' Adagrad, which asks whether a sum is zero."""
    for name, spelling in dialects.get(dialect).spellings.items():
        rule = rules.get(spelling.rule or name)
        p = {"p": np.ones((4, 4), DTYPES[dtype])}
        optimizer = isostep.Optimizer(rule.name, p, dialect=dialect, lr=0.1)
        jumps = (dialect, rule.name) == ("optax", "Adagrad")
        assert flushes(optimizer, dtype) != jumps, name


@pytest.mark.parametrize(
    ("name", "where", "least"),
    [
        ("adagrad", "eps", 2.0**-37),
        ("adagrad-in-root", "eps", 2.0**-100),
        ("rmsprop-centered", "eps", 2.0**-37),
        ("adadelta", "eps", 2.0**-100),
        ("adafactor", "eps1", 2.0**-100),
        ("adafactor", "eps2", 2.0**-37),
        ("adafactor-torch", "eps1", 2.0 ** (-100 / 3)),
    ],
)
def test_the_smallest_epsilon_that_allows_it(name: str, where: str, least: float) -> None:
    def made(eps: float, dtype: str = "float32") -> bool:
        p = {"p": np.ones((4, 4), dtype)}
        return flushes(BY_NAME[name].optimizer(p, **{where: eps}), dtype)

    assert made(1.001 * least)
    assert not made(0.999 * least)
    assert made(0.999 * least, "float64")
    assert not made(0.0, "float64")


def test_slots_with_fewer_exponents_than_the_parameter_decide() -> None:
    p = {"p": np.ones(4)}
    assert flushes(BY_NAME["rmsprop"].optimizer(p, eps=1e-30), "float64")
    assert not flushes(BY_NAME["rmsprop"].optimizer(p, eps=1e-30, state_dtype="float32"), "float64")


@pytest.mark.parametrize("clip", ["value", "norm", "global_norm"])
def test_a_bound_that_small_gradients_reach_flushes_nothing(clip: str) -> None:
    def made(bound: float) -> bool:
        p = {"p": np.ones(4, np.float32)}
        return flushes(BY_NAME["sgd"].optimizer(p, clip=isostep.Clip(**{clip: bound})))

    assert made(1.0)
    assert not made(1e-36)


@pytest.mark.parametrize("rule", [LION, CROSS], ids=lambda rule: rule.name)
def test_a_rule_that_says_nothing_of_its_divisions_and_signs_is_not_flushed(rule: Any) -> None:
    p = {"p": np.ones((3, 4), np.float32)}
    assert not flushes(isostep.Optimizer(rule, p, lr=0.1))


def test_one_group_without_an_epsilon_decides_for_its_kernel() -> None:
    p = {name: np.ones(4, np.float32) for name in "ab"}
    optimizer = isostep.Optimizer(
        "Adam", p, lr=0.1, groups=[isostep.Group("b", eps=0.0)], engine="native"
    )
    optimizer.step({name: np.full(4, 1e-20, np.float32) for name in "ab"})
    assert [runner.flushes for runner in optimizer._stepper.last] == [False]
    assert p["b"] == pytest.approx(0.9, abs=0.01)  # 1e-40 has few digits


@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_the_process_keeps_its_own_mode(eps: float) -> None:
    """Denormal numbers go on existing, and where a thread flushes them kernels do as they would."""
    p = {"p": np.ones(1 << 17, np.float32)}
    grads = {"p": np.full(1 << 17, 1e-20, np.float32)}
    optimizer = BY_NAME["adam"].optimizer(p, eps=eps, eps_root=0.0, weight_decay=lambda t: 0.0)
    optimizer.step(grads)
    flushed = eps > 0
    assert optimizer.slots("p")["exp_avg_sq"].any() != flushed  # (1e-20)^2 is a denormal
    tiny = np.full(1000, 1e-40, np.float32)
    assert (tiny * np.float32(1)).all()
