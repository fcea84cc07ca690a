"""The ranges that hyperparameters claim: for numbers, for what schedules give, in every step."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import isostep
from isostep import EMA, Clip, Group, HyperparameterError, rules

from .table import assert_same_bits, copied, state_of

NUMBERS = [
    (rule, h)
    for rule in map(rules.get, rules.names())
    for h in rule.hyperparameters
    if not h.static
]


@pytest.mark.parametrize(
    ("rule", "h"), NUMBERS, ids=[f"{rule.name}-{h.name}" for rule, h in NUMBERS]
)
def test_infinity_is_in_a_range_only_where_its_end_is_closed(rule: Any, h: Any) -> None:
    closed = h.range.removesuffix(" or None").endswith("inf]")
    assert ("inf" in h.range) == (h.high in (None, math.inf))
    for value, allowed in ((math.inf, closed), (-math.inf, False), (math.nan, False)):
        if allowed:
            assert h.check(value) == value
        else:
            with pytest.raises(HyperparameterError, match="it must lie in"):
                h.check(value)
    assert h.check(h.default) == h.default


BAD: list[tuple[str, Callable[[Any], dict[str, Any]]]] = [
    ("lr", lambda bad: {"lr": bad}),
    ("weight_decay", lambda bad: {"weight_decay": bad}),
    ("eps", lambda bad: {"eps": bad}),
    ("lr_ratio", lambda bad: {"groups": [Group("a", lr_ratio=bad)]}),
    ("lr", lambda bad: {"groups": [Group("a", lr=bad)]}),
    ("momentum", lambda bad: {"ema": EMA(bad)}),
    ("bound", lambda bad: {"clip": Clip(norm=bad)}),
    ("bound", lambda bad: {"clip": Clip(value=bad)}),
]


@pytest.mark.parametrize("value", [math.inf, math.nan, -1.0])
@pytest.mark.parametrize(("named", "options"), BAD)
def test_a_schedule_that_leaves_its_range_is_refused_and_nothing_is_changed(
    named: str, options: Any, value: float
) -> None:
    if named == "bound" and value == math.inf:
        pytest.skip("infinity is a bound")
    params = {"a": np.ones(3), "b": np.ones((2, 2))}
    grads = copied(params)
    schedule = lambda t: 0.5 if t < 2 else value  # noqa: E731
    optimizer = isostep.Adam(params, **{"lr": 0.1, **options(schedule)})
    optimizer.step(grads)
    optimizer.step(grads)
    before = copied(state_of(optimizer, params))
    with pytest.raises(HyperparameterError, match=rf"{named}=.* is out of range: it must lie in"):
        optimizer.step(grads)
    assert_same_bits(state_of(optimizer, params), before)


def test_a_rate_that_only_its_ratio_makes_infinite_is_refused() -> None:
    p = {"a": np.ones(3)}
    optimizer = isostep.SGD(p, lr=1e300, groups=[Group("a", lr_ratio=1e300)])
    with pytest.raises(HyperparameterError, match="the learning rate of 'a' is inf after 0 steps"):
        optimizer.step(copied(p))
    assert p["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", ["value", "norm", "global_norm"])
def test_an_infinite_bound_clips_nothing(kind: str) -> None:
    ends = []
    for clip in (None, Clip(**{kind: math.inf})):
        p = {"a": np.ones(3)}
        isostep.SGD(p, lr=0.5, clip=clip).step({"a": np.full(3, 1e30)})
        ends.append(p["a"].tolist())
    assert ends[0] == ends[1]


@pytest.mark.parametrize("bounds", [(1.0,), (None, 1.0), (1.0, 2.0, 3.0)])
def test_a_bound_must_be_named(bounds: Any) -> None:
    with pytest.raises(TypeError, match=r"write Clip\(value=...\).*Clip\(global_norm=...\)"):
        Clip(*bounds)


def test_a_clip_is_a_value() -> None:
    clip = Clip(norm=2.0)
    assert clip == Clip(norm=2) != Clip(value=2.0)
    assert pickle.loads(pickle.dumps(clip)) == copy.deepcopy(clip) == clip
    assert dataclasses.replace(clip, norm=3.0) == Clip(norm=3.0)


def test_an_average_names_all_but_its_momentum() -> None:
    assert EMA(0.5) == EMA(momentum=0.5)
    with pytest.raises(TypeError, match="positional"):
        EMA(0.5, 3)  # pyright: ignore[reportCallIssue]
