"""A rule of one's own, in one's own file, has every engine, every option and a place in a race.

Two of them: Lion (elementwise; Chen et al., arXiv:2302.06675, algorithm 2), and a descent scaled by
the running mean size of gradients per row and per column, to have reductions and slots of other
shapes than Adafactor's formulas give.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import isostep
from isostep import Clip, rules
from isostep.cli.race.contest import Budget
from isostep.cli.race.contestants import contestants, parse_entries, registered
from isostep.cli.race.runner import run_race
from isostep.cli.race.store import Store
from isostep.rules import Hyperparameter, Rule, Slot
from isostep.rules.base import LR, WEIGHT_DECAY, unit_interval

from .cli.conftest import Bowl
from .table import AnyArray, assert_same_bits, copied, gradients, parameters, state_of

ENGINES = ("native", "array")

# -- the rules -------------------------------------------------------------------------------------


def lion_coefficients(xp: Any, t: Any, h: SimpleNamespace) -> dict[str, Any]:
    return {
        "lr": h.lr,
        "beta1": h.beta1,
        "one_minus_beta1": 1.0 - h.beta1,
        "beta2": h.beta2,
        "one_minus_beta2": 1.0 - h.beta2,
    }


def lion_update(
    xp: Any, g: Any, p: Any, slots: Any, c: SimpleNamespace, o: SimpleNamespace
) -> tuple[Any, dict[str, Any]]:
    m = slots["exp_avg"]
    direction = xp.sign(c.beta1 * m + c.one_minus_beta1 * g)
    return -c.lr * direction, {"exp_avg": c.beta2 * m + c.one_minus_beta2 * g}


LION = Rule(
    name="Lion",
    hyperparameters=(
        LR,
        unit_interval("beta1", 0.9, "weight of the momentum in the step"),
        unit_interval("beta2", 0.99, "decay rate of the momentum"),
        WEIGHT_DECAY,
    ),
    slots=(Slot("exp_avg", "moving average of gradients"),),
    coefficients=lion_coefficients,
    update=lion_update,
    decay="decoupled",
)


def cross_update(
    xp: Any, g: Any, p: Any, slots: Any, c: SimpleNamespace, o: SimpleNamespace
) -> tuple[Any, dict[str, Any]]:
    if not o.factored:
        return -c.lr * g / (xp.abs(g) + c.eps), {}
    row = c.rho * slots["row"] + c.one_minus_rho * xp.mean(xp.abs(g), per="row")
    column = c.rho * slots["column"] + c.one_minus_rho * xp.mean(xp.abs(g), per="column")
    return -c.lr * g / xp.sqrt((row + c.eps) * (column + c.eps)), {"row": row, "column": column}


CROSS = Rule(
    name="CrossScaled",
    hyperparameters=(
        LR,
        unit_interval("rho", 0.9, "decay rate of the mean sizes"),
        Hyperparameter("eps", 1e-3, "added to the mean sizes"),
        WEIGHT_DECAY,
    ),
    slots=(
        Slot("row", "mean size of a row", per="row", when=lambda o: o.factored),
        Slot("column", "mean size of a column", per="column", when=lambda o: o.factored),
    ),
    coefficients=lambda xp, t, h: {
        "lr": h.lr,
        "rho": h.rho,
        "one_minus_rho": 1.0 - h.rho,
        "eps": h.eps,
    },
    update=cross_update,
    factored_axes=lambda shape, h: (len(shape) - 2, len(shape) - 1) if len(shape) > 1 else None,
)


@pytest.fixture(autouse=True, scope="module")
def known() -> Iterator[None]:
    """Registered as a user would, and forgotten after this file."""
    before = dict(rules._rules)
    rules.register(LION)
    rules.register(CROSS)
    yield
    rules._rules.clear()
    rules._rules.update(before)


# -- the oracles -----------------------------------------------------------------------------------

H: dict[str, dict[str, float]] = {
    "Lion": {"lr": 0.02, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.1},
    "CrossScaled": {"lr": 0.02, "rho": 0.8, "eps": 0.05, "weight_decay": 0.1},
}


def lion_oracle(p: AnyArray, grads: list[AnyArray]) -> dict[str, AnyArray]:
    h = SimpleNamespace(**H["Lion"])
    m = np.zeros_like(p)
    for g in grads:
        direction = np.sign(h.beta1 * m + (1 - h.beta1) * g)
        p = p - h.lr * (direction + h.weight_decay * p)
        m = h.beta2 * m + (1 - h.beta2) * g
    return {"": p, ".exp_avg": m}


def cross_oracle(p: AnyArray, grads: list[AnyArray]) -> dict[str, AnyArray]:
    h = SimpleNamespace(**H["CrossScaled"])
    slots: dict[str, AnyArray] = {}
    for g in grads:
        g = g + h.weight_decay * p
        size = np.abs(g) + h.eps
        if p.ndim > 1:
            for name, axis in ((".row", -1), (".column", -2)):
                mean = np.abs(g).mean(axis=axis)
                slots[name] = h.rho * slots.get(name, np.zeros_like(mean)) + (1 - h.rho) * mean
            row, column = slots[".row"][..., None], slots[".column"][..., None, :]
            size = np.sqrt((row + h.eps) * (column + h.eps))
        p = p - h.lr * g / size
    return {"": p, **slots}


def oracle(rule: str, params: dict[str, AnyArray], steps: int) -> dict[str, AnyArray]:
    follow = {"Lion": lion_oracle, "CrossScaled": cross_oracle}[rule]
    grads = [gradients(step) for step in range(steps)]
    return {
        f"{name}{suffix}": value
        for name, p in params.items()
        for suffix, value in follow(p, [g[name] for g in grads]).items()
    }


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rule", ["Lion", "CrossScaled"])
def test_a_rule_of_ones_own_follows_its_oracle_in_both_engines(rule: str, engine: str) -> None:
    params = parameters()
    expected = oracle(rule, params, 200)
    optimizer = isostep.Optimizer(rule, params, engine=engine, **H[rule])
    for step in range(200):
        optimizer.step(gradients(step))
    layouts = {"flat"} if rule == "Lion" else {"flat", "rows", "lanes"}
    assert set(optimizer.ran) == {f"{engine} {layout} float64" for layout in layouts}
    state = state_of(optimizer, params)
    assert state.keys() == expected.keys()
    for name, value in state.items():
        scale = np.maximum(np.abs(expected[name]), np.sqrt(np.mean(expected[name] ** 2)))
        assert np.all(np.abs(value - expected[name]) <= 1e-12 * scale), name


@pytest.mark.parametrize("dialect", ["torch", "keras", "tf_keras", "paddle", "optax"])
def test_a_rule_of_ones_own_is_spelled_by_every_dialect_as_it_declares_itself(dialect: str) -> None:
    params = parameters()
    expected = oracle("Lion", params, 5)
    optimizer = isostep.Optimizer("Lion", params, dialect=dialect, engine="array", **H["Lion"])
    for step in range(5):
        optimizer.step(gradients(step))
    for name, p in params.items():
        np.testing.assert_allclose(p, expected[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("rule", "dtype"), [("Lion", "float32"), ("Lion", "bfloat16"), ("CrossScaled", "float32")]
)
def test_a_rule_of_ones_own_has_every_option_in_both_engines(rule: str, dtype: str) -> None:
    """Clip, average, masters, report and skipping come from the recipe."""
    states: list[dict[str, AnyArray]] = []
    for engine in ENGINES:
        params = parameters(dtype=dtype)
        optimizer = isostep.Optimizer(
            rule,
            params,
            **H[rule],
            clip=Clip(global_norm=2.0),
            ema=0.9,
            master_weights=True,
            nonfinite="skip",
            report=True,
            engine=engine,  # type: ignore[arg-type]
        )
        for step in range(4):
            grads = gradients(step, dtype=dtype)
            if step == 2:
                grads["bias"][0] = np.nan
            report = optimizer.step(grads)
            assert report is not None
            assert report.skipped == (step == 2)
        states.append(state_of(optimizer, params))
    native, array = states
    assert native.keys() == array.keys()
    u = 2.0**-8 if dtype == "bfloat16" else 2.0**-24
    for name in native:
        ours, theirs = (s[name].astype(np.float64) for s in (native, array))
        coarse = u if native[name].dtype.name == dtype else 2.0**-24
        # Three steps of at most 20 roundings each; a sign that rounding decides moves by 2 lr.
        allowed = 3 * 20 * coarse * np.maximum(np.abs(theirs), 1.0)
        assert np.mean(np.abs(ours - theirs) <= allowed) > 0.99, name


def test_a_rule_of_ones_own_resumes_bit_for_bit() -> None:
    params = parameters(dtype="float32")
    optimizer = isostep.Optimizer("Lion", params, **H["Lion"])
    optimizer.step(gradients(0, dtype="float32"))
    again = copied(params)
    other = isostep.Optimizer("Lion", again, **H["Lion"])
    other.load_state_dict(optimizer.state_dict())
    for o in (optimizer, other):
        o.step(gradients(1, dtype="float32"))
    assert_same_bits(state_of(other, again), state_of(optimizer, params))


def test_a_rule_of_ones_own_appears_in_a_race(tmp_path: Path) -> None:
    """By its name, with no change anywhere else, beside the built-in ones."""
    assert "Lion" in [entry.rule for entry in registered("torch")]
    entries = parse_entries("Lion, Lion(beta1=0.5), SGD")
    budget = Budget(steps=8, seeds=1, learning_rates=2)
    places = run_race(Bowl(), contestants(entries, "torch"), budget, Store(tmp_path))
    assert {place.optimizer for place in places} == {"Lion", "Lion(beta1=0.5)", "SGD"}
    lion = next(place for place in places if place.optimizer == "Lion")
    assert np.isfinite(lion.best.loss.mean)
    assert lion.state_bytes_per_parameter == 8  # one float64 slot


def test_a_taken_name_is_refused_and_the_same_rule_twice_is_not() -> None:
    assert rules.register(LION) is LION
    assert rules.get("Lion") is LION
    with pytest.raises(ValueError, match="'Adam' exists already"):
        rules.register(Rule("Adam", (LR,), (), lion_coefficients, lion_update))
    with pytest.raises(ValueError, match="did you mean 'Lion'"):
        rules.get("Lino")


def test_a_rule_need_not_be_registered() -> None:
    p = np.ones(3)
    isostep.Optimizer(LION, [p], lr=0.5).step([np.ones(3)])
    assert p.tolist() == [0.5, 0.5, 0.5]
