"""The walk over learning rates: no rate twice, over the hill from any default."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isostep.cli.race.errors import RaceError
from isostep.cli.race.learning_rates import (
    at_the_edge,
    next_learning_rate,
    parse_learning_rates,
)


def walk(centre: float, best: float, limit: float, count: int) -> dict[float, float]:
    """Walk over a valley around `best` (in decades) that diverges above `limit` times it."""
    tried: dict[float, float] = {}
    for _ in range(count):
        rate = next_learning_rate(centre, tried)
        assert rate not in tried
        far = abs(math.log10(rate / best))
        tried[rate] = far if rate <= best * limit else math.inf
    return tried


decades = st.floats(-4, 1).map(lambda exponent: 10**exponent)


@given(centre=decades, best=decades, limit=st.floats(1.1, 1e6))
def test_the_walk_comes_within_a_decade_of_the_best(
    centre: float, best: float, limit: float
) -> None:
    # Five decades to the best at most, one beyond it to know, and one more.
    tried = walk(centre, best, limit, 8)
    assert min(tried.values()) <= 1.0


@given(centre=decades, best=decades)
def test_what_is_left_is_spent_beside_the_best(centre: float, best: float) -> None:
    tried = walk(centre, best, math.inf, 16)
    assert min(tried.values()) <= 0.2
    assert not at_the_edge(min(tried, key=tried.__getitem__), tried)


@given(centre=decades)
def test_the_walk_starts_at_the_default_and_goes_down_while_all_diverges(centre: float) -> None:
    tried: dict[float, float] = {}
    for _ in range(5):
        tried[next_learning_rate(centre, tried)] = math.inf
    assert list(tried) == sorted(tried, reverse=True)
    assert next(iter(tried)) == centre


def test_rates_stay_apart_however_many_are_tried() -> None:
    walk(1e-3, 0.02, math.inf, 60)


def test_a_count_or_the_rates_themselves_are_read() -> None:
    assert parse_learning_rates("7") == 7
    assert parse_learning_rates("0.1, 1e-3") == (0.1, 1e-3)
    assert parse_learning_rates("0.5") == (0.5,)
    with pytest.raises(RaceError, match="few"):
        parse_learning_rates("few")
