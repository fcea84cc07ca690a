"""Laws of the schedules: their formulas, ends, configurations and behaviour in array code."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isostep.errors import HyperparameterError, UnknownNameError
from isostep.schedules import (
    Chained,
    Constant,
    Cosine,
    Exponential,
    InverseTime,
    LinearWarmup,
    OneCycle,
    Piecewise,
    Polynomial,
    Schedule,
    WarmupStableDecay,
    as_schedule,
    from_config,
)

EPS = float(np.finfo(np.float64).eps)
LARGEST = 8.0  # the largest value of the generated schedules below

values = st.floats(1e-6, LARGEST)
counts = st.integers(1, 300)
moments = st.integers(0, 1000)
boundaries = st.lists(counts, max_size=4, unique=True).map(sorted)


@st.composite
def piecewise(draw: st.DrawFn) -> Piecewise:
    edges = draw(boundaries)
    return Piecewise(edges, [draw(values) for _ in range(len(edges) + 1)])


simple: st.SearchStrategy[Schedule] = st.one_of(
    st.builds(Constant, values),
    st.builds(LinearWarmup, values, counts, values),
    st.builds(Cosine, values, counts, values),
    st.builds(Exponential, values, st.floats(0.5, 1.0), counts, st.booleans()),
    st.builds(Polynomial, values, values, counts, st.floats(0.25, 4.0)),
    piecewise(),
    st.builds(InverseTime, values, st.floats(0.0, 2.0), counts, st.booleans()),
    st.builds(
        OneCycle,
        values,
        counts,
        warmup_fraction=st.floats(0.0, 0.9),
        shape=st.sampled_from(["cosine", "linear"]),
    ),
    st.builds(
        WarmupStableDecay,
        values,
        st.integers(0, 50),
        st.integers(0, 50),
        counts,
        shape=st.sampled_from(["linear", "cosine", "sqrt"]),
    ),
)


def chained(children: st.SearchStrategy[Schedule]) -> st.SearchStrategy[Schedule]:
    def chain(edges: list[int]) -> st.SearchStrategy[Schedule]:
        links = st.lists(children, min_size=len(edges) + 1, max_size=len(edges) + 1)
        return st.builds(Chained, links, st.just(edges))

    return boundaries.flatmap(chain)


schedules = st.recursive(simple, chained, max_leaves=4)

EXAMPLES: list[Schedule] = [
    Constant(0.1),
    LinearWarmup(1.0, 7, 0.2),
    Cosine(1.0, 49, 0.1),
    Exponential(1.0, 0.9, 49, staircase=True),
    Exponential(1.0, 1.5, 3, end=4.0),
    Exponential(1.0, 0.5, 3, end=0.1),
    Polynomial(1.0, 0.1, 49, 0.5),
    Piecewise([3, 49], [1.0, 0.5, 0.1]),
    InverseTime(1.0, 0.5, 49, staircase=True),
    OneCycle(1.0, 49),
    OneCycle(1.0, 49, shape="linear"),
    WarmupStableDecay(1.0, 5, 20, 10),
    WarmupStableDecay(1.0, 0, 0, 10, shape="cosine"),
    WarmupStableDecay(1.0, 5, 20, 10, end=0.1, shape="sqrt"),
    Chained([LinearWarmup(1.0, 7), Chained([Cosine(1.0, 9), 0.3], [9]), Constant(0.2)], [7, 100]),
]


def assert_close(actual: Any, expected: list[float]) -> None:
    # The fraction of a phase that is done is near 1, so rounding in a few operations on it is an
    # absolute error of a few EPS times the largest value, however small the result is.
    np.testing.assert_allclose(actual, expected, rtol=8 * EPS, atol=8 * EPS * LARGEST)


def half_cosine(fraction: float) -> float:
    return 0.5 * (1.0 - math.cos(math.pi * fraction))


# Every formula here is written for one phase only, so that it shares nothing with the code.
FORMULAS: list[tuple[Schedule, range, Callable[[int], float]]] = [
    (Constant(0.3), range(9), lambda t: 0.3),
    (LinearWarmup(2.0, 8, 0.5), range(9), lambda t: 0.5 + 1.5 * t / 8),
    (Cosine(2.0, 30, 0.5), range(31), lambda t: 1.25 + 0.75 * math.cos(math.pi * t / 30)),
    (Exponential(2.0, 0.9, 5), range(60), lambda t: 2.0 * math.exp(math.log(0.9) * t / 5)),
    (Exponential(2.0, 1.1, 5), range(60), lambda t: 2.0 * math.exp(math.log(1.1) * t / 5)),
    (Exponential(2.0, 0.5, 5, True), range(60), lambda t: 2.0 / 2 ** (t // 5)),
    (Exponential(2.0, 0.5, end=0.1), range(60), lambda t: max(2.0 / 2**t, 0.1)),
    (Exponential(0.1, 2.0, end=3.0), range(60), lambda t: min(0.1 * 2**t, 3.0)),
    (Polynomial(2.0, 0.5, 30), range(31), lambda t: 2.0 - 0.05 * t),
    (Polynomial(2.0, 0.5, 30, 2.0), range(31), lambda t: 0.5 + 1.5 * (30 - t) ** 2 / 900),
    (Polynomial(0.5, 2.0, 30, 0.5), range(31), lambda t: 2.0 - 1.5 * math.sqrt((30 - t) / 30)),
    (InverseTime(2.0, 0.5, 4), range(60), lambda t: 16.0 / (8 + t)),
    (InverseTime(2.0, 0.5, 4, True), range(60), lambda t: 4.0 / (2 + t // 4)),
    (OneCycle(1.0, 100), range(31), lambda t: 0.04 + 0.96 * half_cosine(t / 30)),
    (OneCycle(1.0, 100), range(30, 101), lambda t: 1.0 - (1 - 4e-6) * half_cosine((t - 30) / 70)),
    (OneCycle(1.0, 100, shape="linear"), range(31), lambda t: 0.04 + 0.96 * t / 30),
    (WarmupStableDecay(2.0, 4, 6, 10, start=1.0), range(5), lambda t: 1.0 + t / 4),
    (WarmupStableDecay(2.0, 4, 6, 10), range(4, 11), lambda t: 2.0),
    (WarmupStableDecay(2.0, 4, 6, 10, end=1.0), range(10, 21), lambda t: 2.0 - (t - 10) / 10),
    (
        WarmupStableDecay(2.0, 4, 6, 10, shape="cosine"),
        range(10, 21),
        lambda t: 2.0 - 2.0 * half_cosine((t - 10) / 10),
    ),
    (
        WarmupStableDecay(2.0, 4, 6, 10, shape="sqrt"),
        range(10, 21),
        lambda t: 2.0 - 2.0 * math.sqrt((t - 10) / 10),
    ),
]


@pytest.mark.parametrize(
    ("schedule", "steps", "formula"),
    FORMULAS,
    ids=lambda x: str(x)[:60] if repr(x)[0] != "<" else "formula",
)
def test_follows_its_closed_form(
    schedule: Schedule, steps: range, formula: Callable[[int], float]
) -> None:
    assert_close([schedule(t) for t in steps], [formula(t) for t in steps])


@pytest.mark.parametrize(
    ("schedule", "exact"),
    [
        (LinearWarmup(0.1, 7, 0.3), {0: 0.3, 7: 0.1, 8: 0.1, 10**9: 0.1}),
        (Cosine(0.1, 7, 0.3), {0: 0.1, 7: 0.3, 10**9: 0.3}),
        (Polynomial(0.1, 0.3, 49, 0.5), {0: 0.1, 49: 0.3, 10**9: 0.3}),
        (Exponential(0.1, 0.7, end=0.03), {0: 0.1, 10**9: 0.03}),
        (OneCycle(0.1, 10, start_factor=0.5, end_factor=0.0), {0: 0.05, 3: 0.1, 10: 0.0, 99: 0.0}),
        (WarmupStableDecay(0.1, 3, 2, 7, 0.3, 0.7), {0: 0.3, 3: 0.1, 5: 0.1, 12: 0.7, 10**9: 0.7}),
        (WarmupStableDecay(0.1, 0, 2, 7, 0.3, 0.7), {0: 0.1, 1: 0.1, 2: 0.1, 9: 0.7}),
    ],
    ids=str,
)
def test_phases_begin_and_end_at_exactly_the_given_values(
    schedule: Schedule, exact: dict[int, float]
) -> None:
    assert {t: schedule(t) for t in exact} == exact


@given(edges=boundaries, t=moments)
def test_piecewise_switches_at_the_boundary_itself(edges: list[int], t: int) -> None:
    levels = [float(i) for i in range(len(edges) + 1)]
    assert Piecewise(edges, levels)(t) == sum(edge <= t for edge in edges)


@given(period=counts, number=st.integers(0, 50), data=st.data())
def test_staircase_is_flat_within_a_period(period: int, number: int, data: st.DataObject) -> None:
    t = period * number + data.draw(st.integers(0, period - 1))
    assert Exponential(2.0, 0.9, period, staircase=True)(t) == 2.0 * 0.9**number
    assert InverseTime(2.0, 0.9, period, staircase=True)(t) == 2.0 / (1.0 + 0.9 * number)


@given(values, st.floats(0.1, 4.0), st.integers(1, 30), st.integers(-2, 2))
def test_exponential_never_passes_its_end(initial: float, rate: float, n: int, ulps: int) -> None:
    # An end within rounding of a value on the way, where the number of periods to it is uncertain.
    near = initial * rate**n + ulps * math.ulp(initial * rate**n)
    end = min(near, initial) if rate < 1.0 else max(near, initial)
    low, high = sorted((initial, end))
    schedule = Exponential(initial, rate, end=end)
    assert all(low <= schedule(t) <= high for t in (n - 1, n, n + 1))
    assert schedule(10**6) == end or rate == 1.0


def test_growth_with_an_end_does_not_overflow_and_without_one_is_refused() -> None:
    assert Exponential(1e-7, 10.0, end=1.0)(10**6) == 1.0
    with np.errstate(all="raise"):
        assert Exponential(1e-7, 10.0, end=1.0)(np.array([10**6])) == 1.0
    with pytest.raises(HyperparameterError, match=r"decay_rate=10.*too large .* at step 1000000"):
        Exponential(1e-7, 10.0)(10**6)


@given(schedule=schedules, shift=counts, head=simple, t=moments)
def test_a_chained_schedule_counts_from_its_own_boundary(
    schedule: Schedule, shift: int, head: Schedule, t: int
) -> None:
    chain = Chained([head, schedule], [shift])
    assert chain(t) == (head(t) if t < shift else schedule(t - shift))


def test_a_chained_schedule_is_not_evaluated_outside_its_part() -> None:
    growing = Exponential(1.0, 10.0)
    chain = Chained([growing, 0.5, growing], [3, 10**6])
    assert [chain(t) for t in (2, 3, 10**6 - 1, 10**6 + 2)] == [100.0, 0.5, 0.5, 100.0]
    with np.errstate(all="raise"):
        assert chain(np.array([2, 3, 10**6 + 2])).tolist() == [100.0, 0.5, 100.0]


@given(schedule=schedules)
def test_array_of_counts_gives_the_values_of_single_counts(schedule: Schedule) -> None:
    steps = np.arange(0, 700, 7)
    several = schedule(steps)
    assert (several.shape, several.dtype) == (steps.shape, np.float64)
    assert_close(several, [schedule(int(t)) for t in steps])


UNDER_JIT = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from isostep.schedules import from_config

def values(config):
    schedule = jax.jit(lambda t: from_config(config)(t, jnp))
    steps = np.arange(500, dtype=np.int32)
    narrow = schedule(steps)
    with jax.enable_x64(True):
        schedule = jax.jit(lambda t: from_config(config)(t, jnp))
        one, wide = schedule(jnp.asarray(4, jnp.int32)), schedule(steps)
    dtypes = [str(a.dtype) for a in (narrow, one, wide)]
    return [np.asarray(narrow).tolist(), float(one), np.asarray(wide).tolist(), dtypes]

json.dump([values(config) for config in json.load(sys.stdin)], sys.stdout)
"""


@pytest.fixture(scope="module")
def under_jit() -> list[Any]:
    """What JAX computes for each of EXAMPLES, in a process of its own."""
    configs = json.dumps([schedule.get_config() for schedule in EXAMPLES])
    done = subprocess.run(
        [sys.executable, "-c", UNDER_JIT], input=configs, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("index", range(len(EXAMPLES)), ids=[str(s) for s in EXAMPLES])
def test_under_jit_in_float64_the_values_are_those_of_the_host(
    index: int, under_jit: list[Any]
) -> None:
    _, one, wide, dtypes = under_jit[index]
    expected = [EXAMPLES[index](t) for t in range(500)]
    assert dtypes[1:] == ["float64", "float64"]
    assert_close(wide, expected)
    assert_close([one], expected[4:5])


@pytest.mark.parametrize("index", range(len(EXAMPLES)), ids=[str(s) for s in EXAMPLES])
def test_under_jit_without_x64_the_values_are_float32(index: int, under_jit: list[Any]) -> None:
    narrow, _, _, dtypes = under_jit[index]
    eps = float(np.finfo(np.float32).eps)
    assert dtypes[0] == "float32"
    expected = [EXAMPLES[index](t) for t in range(500)]
    # x ** n amplifies the rounding of its exponent by n * log(x), at most 500 / 3 * log(2) here.
    np.testing.assert_allclose(narrow, expected, rtol=128 * eps, atol=8 * eps)


@given(schedule=schedules, t=moments)
def test_an_integer_count_gives_a_python_float(schedule: Schedule, t: int) -> None:
    assert type(schedule(t)) is float
    assert type(schedule(np.int64(t))) is float
    assert schedule(np.int64(t)) == schedule(t)


@given(schedule=schedules)
def test_configuration_passes_through_json_and_rebuilds_an_equal_schedule(
    schedule: Schedule,
) -> None:
    config = json.loads(json.dumps(schedule.get_config(), allow_nan=False))
    before = json.dumps(config)
    rebuilt = from_config(config)
    assert rebuilt == schedule
    assert hash(rebuilt) == hash(schedule)
    assert rebuilt.get_config() == schedule.get_config()
    assert json.dumps(config) == before


def test_equality_is_by_value_whatever_the_container_or_scalar_type() -> None:
    edges: Any = np.array([3])
    levels: Any = np.array([1.0, 2.0])
    assert Piecewise([3], [1, 2]) == Piecewise((3,), levels) == Piecewise(edges, (1, 2))
    assert Cosine(1, np.int32(5)) == Cosine(np.float64(1.0), 5)  # type: ignore[arg-type]
    assert Chained([1, Constant(2)], [5]) == Chained((Constant(1.0), 2.0), (5,))
    assert Cosine(1.0, 5) != Cosine(1.0, 6)
    assert Cosine(1.0, 5) != LinearWarmup(1.0, 5)
    assert Piecewise(edges, levels).get_config() == {
        "schedule": "Piecewise",
        "boundaries": [3],
        "values": [1.0, 2.0],
    }


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Constant(math.nan), r"Constant: value must be a finite number, got nan"),
        (lambda: Constant(True), r"value must be a finite number, got True \(bool\)"),
        (lambda: Constant(10**400), r"value must be a finite number"),
        (lambda: Cosine("0.1", 5), r"Cosine: peak must be a finite number, got '0.1' \(str\)"),  # type: ignore[arg-type]
        (lambda: Cosine(1.0, 0), r"Cosine: steps must be an integer >= 1 .*, got 0 \(int\)"),
        (lambda: Cosine(1.0, 2**53 + 1), r"steps must be an integer .* <= 2\*\*53"),
        (lambda: Cosine(1.0, 5.0), r"steps must be an integer .*, got 5.0 \(float\)"),  # type: ignore[arg-type]
        (lambda: LinearWarmup(1.0, 5, math.inf), r"LinearWarmup: start .* got inf"),
        (lambda: Exponential(0.0, 0.5), r"Exponential: initial must be a finite number > 0"),
        (lambda: Exponential(1.0, 0.0), r"decay_rate must be a finite number > 0, got 0.0"),
        (lambda: Exponential(1.0, 0.5, staircase=1), r"staircase must be True or False, got 1"),  # type: ignore[arg-type]
        (lambda: Exponential(1.0, 0.5, end=2.0), r"end must be <= initial \(1.0\) .*got 2.0"),
        (lambda: Exponential(1.0, 1.5, end=0.5), r"end must be >= initial \(1.0\) .*got 0.5"),
        (lambda: Polynomial(1.0, 0.0, 5, 0.0), r"Polynomial: power must be a finite number > 0"),
        (lambda: InverseTime(1.0, -0.5), r"InverseTime: decay_rate must be a finite number >= 0"),
        (lambda: OneCycle(1.0, 5, 1.0), r"OneCycle: warmup_fraction must be a number in \[0, 1\)"),
        (lambda: OneCycle(1.0, 5, shape="cosin"), r"'linear', got 'cosin'.*did you mean 'cosine'"),  # type: ignore[arg-type]
        (lambda: WarmupStableDecay(1.0, -1, 2, 3), r"warmup_steps must be an integer >= 0"),
        (lambda: WarmupStableDecay(1.0, 1, 2, 0), r"decay_steps must be an integer >= 1"),
        (lambda: Piecewise([5, 5], [1, 2, 3]), r"boundaries must be strictly increasing.*\[5, 5\]"),
        (lambda: Piecewise([0], [1, 2]), r"boundaries\[0\] must be an integer >= 1"),
        (lambda: Piecewise(5, [1, 2]), r"boundaries must be a sequence, got 5 \(int\)"),  # type: ignore[arg-type]
        (lambda: Piecewise([5], [1]), r"values must have one entry more.*1 values and 1 bound"),
        (lambda: Chained([], []), r"Chained: schedules must have one entry more than boundaries"),
        (lambda: Chained([abs], []), r"schedules\[0\] must be a schedule .* or a finite number"),  # type: ignore[list-item]
        (lambda: Constant(1.0)(-1), r"step count must be an integer >= 0, got -1"),
    ],
)
def test_a_refused_argument_is_named_with_its_value_and_range(
    build: Callable[[], object], message: str
) -> None:
    with pytest.raises(HyperparameterError, match=message):
        build()


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"schedule": "cosin", "peak": 1.0}, UnknownNameError, "did you mean 'Cosine'"),
        ({"schedule": "zzz"}, UnknownNameError, "known: .*'WarmupStableDecay'"),
        ({"schedule": "Cosine", "peek": 1.0, "steps": 5}, UnknownNameError, "did you mean 'peak'"),
        ({"schedule": "Constant", "zzz": 1.0}, UnknownNameError, r"it has \['value'\]"),
        ({"schedule": "Cosine", "peak": 1.0}, HyperparameterError, "lacks the argument 'steps'"),
        ({"peak": 1.0}, HyperparameterError, "needs the key 'schedule'"),
    ],
)
def test_a_foreign_configuration_is_refused_with_the_reason(
    config: dict[str, Any], error: type[ValueError], message: str
) -> None:
    with pytest.raises(error, match=message):
        from_config(config)


def test_numbers_become_constants_and_callables_stay_themselves() -> None:
    assert as_schedule(3) == Constant(3.0)
    assert as_schedule(np.float32(0.5)) == Constant(0.5)  # type: ignore[arg-type]
    callables: list[Callable[[int], float]] = [Cosine(1.0, 5), lambda t: 0.1 / (t + 1)]
    assert all(as_schedule(each) is each for each in callables)


@pytest.mark.parametrize("value", ["0.1", None, Cosine, math.inf, True])
def test_what_is_neither_number_nor_callable_is_no_schedule(value: Any) -> None:
    with pytest.raises(HyperparameterError, match="must be a finite number"):
        as_schedule(value)


def test_importing_schedules_loads_neither_numba_nor_a_framework() -> None:
    heavy = {"numba", "jax", "torch", "tensorflow", "keras", "paddle"}
    code = f"import sys, isostep.schedules; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
