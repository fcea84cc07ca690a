"""Laws of sets of gradients: which parameters have one may change with every step."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest

import isostep
from isostep import dialects, rules
from isostep.coefficients import Folded
from isostep.engines.selection import Kind
from isostep.recipe import EMA, Clip
from isostep.rules.base import SCALARS
from isostep.stepper import HyperGroup, Options, Stepper

from .table import DTYPES, FORMS, RECIPES, Config, assert_same_bits, named, state_of

ENGINES = ("native", "array")
# One for each way of walking, and several that share each; `wide` and `tall` swap rows and columns.
SHAPES: dict[str, tuple[int, ...]] = {
    "scalar": (),
    "empty": (0, 3),
    "a": (65,),
    "b": (7,),
    "matrix": (9, 17),
    "wide": (5, 40),
    "tall": (40, 5),
    "kernel": (8, 4, 3, 3),
    "kernel2": (16, 3, 3, 3),
    "other": (8, 2, 2, 2),
}
MASKED = [c for c in FORMS + RECIPES if c.clip is None or c.clip[0] != "global_norm"]


def drawn(chance: random.Random, step: int, dtypes: list[str]) -> dict[str, Any]:
    """Gradients of a random part of the parameters, in random dtypes."""
    values = np.random.default_rng([step, 5])
    return {
        name: np.asarray(values.normal(size=shape)).astype(DTYPES[chance.choice(dtypes)])
        if chance.random() < 0.5
        else None
        for name, shape in SHAPES.items()
    }


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("config", MASKED, ids=str)
def test_each_parameter_is_stepped_as_if_it_were_alone(config: Config, engine: str) -> None:
    """Whichever others have gradients. Dialects that count the optimizer's steps let it idle."""
    chance = random.Random(config.name)
    values = np.random.default_rng(0)
    params = {n: np.asarray(values.normal(size=s)) for n, s in SHAPES.items()}
    apart = {n: {n: p.copy()} for n, p in params.items()}
    together = config.optimizer(params, engine=engine)
    alone = {n: config.optimizer(p, engine=engine) for n, p in apart.items()}
    for step in range(8):
        grads = drawn(chance, step, ["float64"])
        together.step(grads, loss_scale=config.loss_scale)
        for name, optimizer in alone.items():
            optimizer.step({name: grads[name]}, loss_scale=config.loss_scale)
    found = state_of(together, params)
    for name, optimizer in alone.items():
        right = state_of(optimizer, apart[name])
        assert_same_bits({n: found[n] for n in right}, right)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "config", named("everything", "clip-global_norm-keras", "everything-adafactor"), ids=str
)
def test_sums_over_tensors_are_of_those_that_have_a_gradient(config: Config, engine: str) -> None:
    """Norms, counts and reports are those of an optimizer that never had the others."""
    chance = random.Random(1)
    for step in range(4):
        grads = drawn(chance, step, ["float32", "float16"])
        values = np.random.default_rng(step)
        params = {n: np.asarray(values.normal(size=s), np.float32) for n, s in SHAPES.items()}
        some = {n: params[n].copy() for n, g in grads.items() if g is not None}
        if step == 3:  # what is not finite is said of the right one
            grads[min(some)].reshape(-1)[0] = np.inf
        whole = config.optimizer(params, engine=engine, report=True)
        part = config.optimizer(some, engine=engine, report=True)
        whole.step(dict.fromkeys(SHAPES))  # builds the tables of others first
        part.step(dict.fromkeys(some))
        said = [said_by(whole, grads), said_by(part, {n: grads[n] for n in some})]
        assert said[0] == said[1]
        found, right = state_of(whole, params), state_of(part, some)
        assert_same_bits({n: found[n] for n in right}, right)


def said_by(optimizer: isostep.Optimizer, grads: dict[str, Any]) -> str:
    """What a step reports, or why it was refused."""
    try:
        return repr(optimizer.step(grads))
    except isostep.GradientError as error:
        return str(error)


def test_parameters_without_gradient_are_not_touched_and_idle_averages_go_on() -> None:
    params = {n: np.ones(s) for n, s in SHAPES.items()}
    optimizer = isostep.Adam(params, dialect="keras", ema=EMA(0.5, start="initial"))
    params["a"][...] = 3.0
    read_only = params["matrix"]
    optimizer.step({n: np.ones(s) if n == "b" else None for n, s in SHAPES.items()})
    assert (params["a"] == 3.0).all()
    assert (optimizer.slots("a")["average"] == 2.0).all()
    assert (read_only == 1.0).all()
    assert (optimizer.slots("b")["average"] != 1.0).all()


# -- what a new set costs ------------------------------------------------------------------------


def experts(count: int, **options: Any) -> tuple[Callable[[], None], isostep.Optimizer]:
    """Steps of many small parameters of which half have gradients, each time other ones."""
    params = {f"p{k}": np.zeros((4, 4), np.float32) for k in range(count)}
    optimizer = isostep.AdamW(params, **options)
    chance = random.Random(0)
    gradient = np.ones((4, 4), np.float32)

    def step() -> None:
        optimizer.step({n: gradient if chance.random() < 0.5 else None for n in params})

    return step, optimizer


def calls_of(step: Callable[[], None]) -> int:
    """How many functions written in Python a step calls, but those of this module."""
    found = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal found
        found += event == "call" and frame.f_code.co_filename != __file__

    sys.setprofile(count)
    try:
        step()
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize("options", [{}, {"lr": lambda t: 0.1 / (t + 1)}, {"ema": 0.9}])
@pytest.mark.parametrize("dialect", ["torch", "keras"])
def test_what_a_new_set_costs_does_not_grow_with_the_number_of_parameters(
    dialect: str, options: dict[str, Any]
) -> None:
    """Neither tables nor coefficients: by then, nearly each parameter has a step count of its
    own."""
    costs: list[float] = []
    for count in (50, 400):
        step, optimizer = experts(count, dialect=dialect, **options)
        for _ in range(60):
            step()
        assert len(optimizer._stepper.ran) == 1
        costs.append(np.median([calls_of(step) for _ in range(5)]))
    assert costs[1] < 1.2 * costs[0]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_new_set_builds_no_cohort(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Kind] = []
    cohort = Kind.cohort

    def counted(kind: Kind, *arguments: Any) -> Any:
        built.append(kind)
        return cohort(kind, *arguments)

    monkeypatch.setattr(Kind, "cohort", counted)
    step, optimizer = experts(20, engine=engine, dialect="keras", ema=0.9)
    for _ in range(30):
        step()
    assert len(built) == 2  # with gradient, and without
    assert len(optimizer._stepper._cohorts.recent) < 12


def test_a_new_mixture_of_dtypes_builds_one_cohort_for_each_dtype(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built: list[str] = []
    cohort = Kind.cohort

    def counted(kind: Kind, leaves: Any, grad_dtype: str, members: Any) -> Any:
        built.append(grad_dtype)
        return cohort(kind, leaves, grad_dtype, members)

    monkeypatch.setattr(Kind, "cohort", counted)
    params = {n: np.zeros(3) for n in "abcdef"}
    optimizer = isostep.SGD(params)
    chance = random.Random(0)
    for _ in range(30):
        optimizer.step({n: np.ones(3, DTYPES[chance.choice([*DTYPES])]) for n in params})
    assert sorted(built) == sorted(DTYPES)


# -- coefficients ----------------------------------------------------------------------------------

COUNTS = np.array([1, 2, 3, 4, 5, 10, 17, 99, 100, 1000, 12345, 10**6, 2**40, 1, 1])


@pytest.mark.parametrize("config", FORMS + RECIPES, ids=str)
def test_counts_folded_together_have_the_bits_of_each_alone(config: Config) -> None:
    stepper = config.optimizer({"p": np.ones((3, 4))})._stepper
    asked: list[Any] = []

    def fold(xp: Any, group: int, t: Any, dtype: str) -> dict[str, Any]:
        asked.append(t)
        return stepper._fold(config.loss_scale, xp, group, t, dtype)

    together = Folded(fold).of(np.zeros(len(COUNTS), np.int64), COUNTS, "float64")
    assert len(asked) == 1
    for k, t in enumerate(COUNTS.tolist()):
        alone = stepper._fold(config.loss_scale, SCALARS, 0, float(t), "float64")
        at_k = {n: float(v[k] if np.ndim(v) else v) for n, v in together.items()}
        assert at_k == {n: float(v) for n, v in alone.items()}


def test_a_rule_that_asks_whether_a_count_is_large_is_folded_one_by_one() -> None:
    def coefficients(xp: Any, t: Any, h: Any) -> dict[str, Any]:
        return {"step_size": h.lr if t < 5 else 0.5 * h.lr}

    def update(xp: Any, g: Any, p: Any, slots: Any, c: Any, o: Any) -> Any:
        return -c.step_size * g, {}

    rule = rules.Rule("Abrupt", rules.get("SGD").hyperparameters, (), coefficients, update)
    params = {f"p{k}": np.zeros(1) for k in range(8)}
    optimizer = isostep.Optimizer(rule, params, lr=1.0)
    for step in range(8):
        optimizer.step({f"p{k}": np.ones(1) if k <= step else None for k in range(8)})
    taken = {n: 8 - k for k, n in enumerate(params)}
    assert {n: -p[0] for n, p in params.items()} == {
        n: min(t, 4) + 0.5 * max(t - 4, 0) for n, t in taken.items()
    }


def test_groups_and_counts_that_differ_keep_their_own_coefficients() -> None:
    """Five counts in each of three groups, in one cohort."""
    spelling = dialects.get("torch").spelling("Adam")
    rule = rules.get("Adam")
    groups = [HyperGroup(str(k), rule.defaults | {"lr": 10.0**-k}) for k in range(3)]
    options = Options(clip=Clip(norm=1.0))
    made = Stepper(rule, dialects.get("torch"), spelling, groups, options, "native")
    for k in range(15):
        made.add(f"p{k}", np.zeros(3), k % 3, steps=k // 3)
    selection = made.prepare(("float64",) * 15)
    (found,) = made._coefficients(selection.runners, 1.0)
    for k in range(15):
        alone = made._fold(1.0, SCALARS, k % 3, float(k // 3 + 1), "float64")
        assert {n: v[k] if isinstance(v, np.ndarray) else v for n, v in found.items()} == alone


def test_groups_that_change_places_keep_the_recipes_of_their_parameters() -> None:
    """What selects code is known by the place of a group, which is another's after that."""
    rule, dialect = rules.get("SGD"), dialects.get("torch")
    values = dialect.spelling(rule).canonical_defaults(rule) | {"lr": 0.1}
    up, down = (HyperGroup(str(up), dict(values), maximize=up) for up in (True, False))
    made = Stepper(rule, dialect, dialect.spelling(rule), [up, down], Options(), "native")
    leaves = [made.add(name, np.ones(3), group) for group, name in enumerate(["up", "down"])]
    made.prepare(("float64", "float64"))
    made.regroup([down, up], [1, 0])
    assert [made.recipe(leaf).maximize for leaf in leaves] == [True, False]
