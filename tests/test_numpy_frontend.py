"""Laws of the NumPy front-end: names, groups, state, averages, reports and refusals."""

from __future__ import annotations

import copy
import gc
import pickle
import signal
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import isostep
from isostep import (
    EMA,
    Clip,
    GradientError,
    Group,
    HyperparameterError,
    ParameterError,
    StateError,
    UnknownNameError,
)
from isostep.compile import machine_code

from .table import (
    ADAM,
    BY_NAME,
    FORMS,
    RECIPES,
    SGD,
    AnyArray,
    Config,
    assert_same_bits,
    copied,
    gradients,
    parameters,
    state_of,
)

# -- names and trees -------------------------------------------------------------------------------


def tree() -> dict[str, Any]:
    return {
        "encoder": [{"w": np.ones((2, 3)), "b": np.zeros(3)}, (np.ones(4),)],
        "scale": np.ones(()),
    }


def test_leaves_of_nested_containers_are_named_by_their_paths() -> None:
    optimizer = isostep.SGD(tree(), lr=1.0)
    names = [entry.name for entry in optimizer.plan().entries]
    assert names == ["encoder.0.w", "encoder.0.b", "encoder.1.0", "scale"]


def test_gradients_may_be_nested_as_the_parameters_or_flat_by_name() -> None:
    nested, flat = tree(), tree()
    isostep.SGD(nested, lr=1.0).step(tree())
    isostep.SGD(flat, lr=1.0).step(
        {
            "scale": np.ones(()),
            "encoder.0.w": np.ones((2, 3)),
            "encoder.1.0": np.ones(4),
            "encoder.0.b": np.zeros(3),
        }
    )
    assert nested["encoder"][0]["w"].tolist() == flat["encoder"][0]["w"].tolist() == [[0] * 3] * 2
    assert nested["scale"] == flat["scale"] == 0


def test_parameters_are_updated_in_place_and_never_replaced() -> None:
    params = tree()
    inner = params["encoder"][0]["w"]
    isostep.SGD(params, lr=1.0).step(tree())
    assert params["encoder"][0]["w"] is inner
    assert not inner.any()


def test_a_single_array_is_a_tree_of_one_leaf() -> None:
    p = np.ones(3)
    isostep.SGD(p, lr=1.0).step(np.ones(3))
    assert p.tolist() == [0, 0, 0]


def test_a_parameter_without_gradient_stays_as_it_is_with_all_its_state() -> None:
    params = parameters()
    optimizer = BY_NAME["adam"].optimizer(params)
    optimizer.step(gradients(0))
    before = copied(state_of(optimizer, params))
    optimizer.step(dict.fromkeys(params))
    assert_same_bits(state_of(optimizer, params), before)
    optimizer.step({**gradients(1), "bias": None})
    after = state_of(optimizer, params)
    for name in before:
        assert (after[name].tobytes() == before[name].tobytes()) == name.startswith("bias"), name
    steps = {n: e["step"] for n, e in optimizer.state_dict()["parameters"].items()}
    assert steps == {"scalar": 2, "bias": 1, "weight": 2, "kernel": 2, "rest": 2}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("engine", ["native", "array"])
def test_gradients_may_come_and_go_from_step_to_step(engine: str, dtype: str) -> None:
    """A missing one is not taken for one of the dtype that was there before."""
    params = {"a": np.zeros(3, dtype), "b": np.zeros(2, dtype)}
    optimizer = isostep.SGD(params, lr=1.0, engine=engine)
    for a, b in ((1, 1), (1, None), (None, 1), (1, 1), (None, None), (None, 1)):
        optimizer.step({n: g and np.ones_like(params[n]) for n, g in (("a", a), ("b", b))})
    assert params["a"].tolist() == [-3] * 3
    assert params["b"].tolist() == [-4] * 2


def test_the_gradient_of_a_0d_parameter_may_be_a_numpy_scalar() -> None:
    p = {"scale": np.array(1.0)}
    isostep.SGD(p, lr=0.5).step({"scale": p["scale"] * 2})
    assert p["scale"] == 0


# -- hyperparameters and groups --------------------------------------------------------------------


def test_the_first_group_that_matches_gives_its_hyperparameters() -> None:
    params = {"a.w": np.ones(2), "a.b": np.ones(2), "c.w": np.ones(2), "d": np.ones(2)}
    optimizer = isostep.SGD(
        params,
        lr=0.1,
        groups=[Group("*.b", lr=0.5), {"match": ["a.*", "re:^c"], "lr": 0.25}],
    )
    optimizer.step({name: np.ones(2) for name in params})
    assert [p[0] for p in params.values()] == [0.75, 0.5, 0.75, 0.9]
    assert [e.group for e in optimizer.plan().entries] == [
        "a.*, re:^c",
        "*.b",
        "a.*, re:^c",
        "(default)",
    ]


def test_groups_with_different_forms_step_together_as_they_would_alone() -> None:
    """Also under one global norm, which all of them share."""
    shared: dict[str, Any] = {"clip": Clip(global_norm=1.0), "momentum": 0.9, "lr": 0.1}
    params = {"a": np.ones(5), "b": np.ones(7)}
    optimizer = isostep.SGD(params, groups=[Group("b", nesterov=True, momentum=0.5)], **shared)
    for step in range(3):
        g = {n: np.random.default_rng(step).normal(size=p.shape) for n, p in params.items()}
        optimizer.step(g)
    assert len(set(optimizer.ran)) == 1
    assert len(optimizer.ran) == 2
    alone: dict[str, AnyArray] = {}
    for name, options in (("a", {}), ("b", {"nesterov": True, "momentum": 0.5})):
        p = {"a": np.ones(5), "b": np.ones(7)}
        one = isostep.SGD(p, **{**shared, **options})
        for step in range(3):
            one.step({n: np.random.default_rng(step).normal(size=v.shape) for n, v in p.items()})
        alone[name] = p[name]
    assert_same_bits(params, alone)


@pytest.mark.parametrize("engine", ["native", "array"])
def test_a_schedule_is_read_at_every_step(engine: str) -> None:
    config = BY_NAME["adam"]
    schedules = {"lr": lambda t: 0.1 / (t + 1), "weight_decay": lambda t: 0.01 * t}
    params = parameters()
    oracle = config.oracle(params, **schedules)
    optimizer = config.optimizer(params, engine=engine, **schedules)
    for step in range(6):
        oracle.step(gradients(step))
        optimizer.step(gradients(step))
    for name, p in params.items():
        np.testing.assert_allclose(p, oracle.params[name], rtol=1e-12, atol=1e-14)


def test_set_acts_from_the_next_step_on_and_may_name_a_group() -> None:
    params = {"a": np.zeros(1), "b": np.zeros(1)}
    optimizer = isostep.SGD(params, lr=1.0, groups=[Group("b", lr=10.0)])
    grads = {"a": -np.ones(1), "b": -np.ones(1)}
    optimizer.step(grads)
    assert (params["a"][0], params["b"][0]) == (1, 11 - 1)
    optimizer.set("b", lr=100.0)
    optimizer.step(grads)
    assert (params["a"][0], params["b"][0]) == (2, 110)
    optimizer.lr = 1000.0
    optimizer.step(grads)
    assert (params["a"][0], params["b"][0]) == (1002, 1110)
    assert optimizer.lr == 1000.0


def test_set_and_groups_take_the_words_of_the_dialect_too() -> None:
    params = {"a": np.ones(1), "b": np.ones(1)}
    optimizer = isostep.Adam(
        params, dialect="keras", lr=0.1, groups=[Group("b", learning_rate=0.2, epsilon=0.5)]
    )
    optimizer.set(learning_rate=0.3)
    optimizer.set("b", beta_1=0.5)
    plan = optimizer.plan().groups
    assert (plan["(default)"]["lr"], plan["(default)"]["beta1"]) == (0.3, 0.9)
    assert (plan["b"]["lr"], plan["b"]["beta1"], plan["b"]["eps"]) == (0.3, 0.5, 0.5)
    torch = isostep.Adam(params, betas=(0.8, 0.9), groups=[Group("b", beta1=0.7)])
    torch.set(betas=(0.5, 0.6))
    assert torch.plan().groups["b"]["beta1"] == 0.5


def test_a_number_may_go_to_zero_unless_it_selects_code() -> None:
    optimizer = isostep.Adam([np.ones(3)], eps=1e-8, beta1=0.9)
    optimizer.set(eps=0.0, beta1=0.0)
    optimizer.set(eps=1e-3, beta1=0.5)
    for rule, h in (("SGD", {"momentum": 0.9}), ("AdamW", {"weight_decay": 0.1})):
        live = isostep.Optimizer(rule, [np.ones(3)], lr=0.1, **h)
        name = next(iter(h))
        with pytest.raises(HyperparameterError, match=f"{name} selects what code runs"):
            live.set(**{name: 0.0})
    with pytest.raises(HyperparameterError, match="nesterov selects what code runs"):
        isostep.SGD([np.ones(3)], momentum=0.9).set(nesterov=True)
    with pytest.raises(HyperparameterError, match="clip_threshold selects what code runs"):
        isostep.Adafactor([np.ones(3)]).set(clip_threshold=None)


def test_a_refused_set_changes_no_group() -> None:
    optimizer = isostep.SGD({"a": np.ones(1), "b": np.ones(1)}, lr=0.1, groups=[Group("b", lr=0.2)])
    before = copy.deepcopy(optimizer.plan().groups)
    for bad in ({"lr": -1.0}, {"lr": 0.5, "momentum": 0.5}, {"lr": 0.5, "momentun": 0.0}):
        with pytest.raises(ValueError):  # noqa: PT011 - three kinds, all of them ValueErrors
            optimizer.set(**bad)
    assert optimizer.plan().groups == before


# -- state -----------------------------------------------------------------------------------------


def test_a_state_is_plain_data_of_copies() -> None:
    params = parameters(dtype="float32")
    optimizer = BY_NAME["everything"].optimizer(params)
    optimizer.step(gradients(0, dtype="float32"))
    state = pickle.loads(pickle.dumps(optimizer.state_dict()))
    frozen = copy.deepcopy(state)
    optimizer.step(gradients(1, dtype="float32"))
    assert state["iteration"] == 1
    for name, entry in state["parameters"].items():
        assert_same_bits(entry["slots"], frozen["parameters"][name]["slots"])


def test_a_state_loads_under_names_whatever_their_order() -> None:
    params = parameters()
    optimizer = BY_NAME["adam"].optimizer(params)
    optimizer.step(gradients(0))
    turned = {name: params[name].copy() for name in reversed(params)}
    other = BY_NAME["adam"].optimizer(turned)
    other.load_state_dict(optimizer.state_dict())
    for o in (optimizer, other):
        o.step(gradients(1))
    assert_same_bits({name: turned[name] for name in params}, params)


def test_loading_never_changes_the_dtype_of_a_slot() -> None:
    wide, narrow = (
        isostep.Adam({"p": np.ones(5, np.float32)}, state_dtype=dtype)
        for dtype in (None, "bfloat16")
    )
    wide.step({"p": np.full(5, 0.3, np.float32)})
    narrow.load_state_dict(wide.state_dict())
    assert narrow.slots("p")["exp_avg"].dtype.name == "bfloat16"
    assert wide.slots("p")["exp_avg"].dtype.name == "float32"


def damaged_states() -> dict[str, Callable[[dict[str, Any]], Any]]:
    def change(*path: Any, to: Any) -> Callable[[dict[str, Any]], Any]:
        def apply(state: dict[str, Any]) -> Any:
            inner = state
            for key in path[:-1]:
                inner = inner[key]
            if to is None:
                del inner[path[-1]]
            else:
                inner[path[-1]] = to
            return state

        return apply

    entry = ("parameters", "weight")
    return {
        "no state": lambda state: [1, 2],
        "empty": lambda state: {},
        "format": change("format", to=99),
        "rule": change("rule", to="SGD"),
        "no iteration": change("iteration", to=None),
        "iteration": change("iteration", to="soon"),
        "missing parameter": change(*entry, to=None),
        "extra parameter": change("parameters", "weights", to={}),
        "no step": change(*entry, "step", to=None),
        "step": change(*entry, "step", to="many"),
        "no slots": change(*entry, "slots", to=None),
        "no entry": change(*entry, to=3),
        "missing slot": change(*entry, "slots", "exp_avg", to=None),
        "extra slot": change(*entry, "slots", "max_exp_avg_sq", to=np.zeros(3)),
        "shape": change(*entry, "slots", "exp_avg", to=np.zeros((17, 9))),
        "dtype": change(*entry, "slots", "exp_avg", to=np.full((9, 17), "x")),
    }


@pytest.mark.parametrize("damage", damaged_states().values(), ids=damaged_states().keys())
def test_a_state_that_is_not_ours_is_refused_and_changes_nothing(
    damage: Callable[[dict[str, Any]], Any],
) -> None:
    params = parameters()
    optimizer = BY_NAME["adam"].optimizer(params)
    optimizer.step(gradients(0))
    foreign = damage(BY_NAME["adam"].optimizer(parameters()).state_dict())
    before = copied(state_of(optimizer, params))
    with pytest.raises(StateError, match=r"\w+ \w+"):
        optimizer.load_state_dict(foreign)
    assert_same_bits(state_of(optimizer, params), before)
    assert optimizer.iteration == 1
    assert {e["step"] for e in optimizer.state_dict()["parameters"].values()} == {1}


# -- averages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_averaged_params_shows_the_averages_and_puts_the_parameters_back(dtype: str) -> None:
    params = parameters(dtype=dtype)
    params["weight"] = np.asfortranarray(params["weight"])
    optimizer = BY_NAME["ema-initial"].optimizer(params)
    for step in range(3):
        optimizer.step(gradients(step, dtype=dtype))
    before = copied(params)
    with optimizer.averaged_params():
        for name, p in params.items():
            assert np.array_equal(p, optimizer.slots(name)["average"])
            assert not np.array_equal(p, before[name])
    assert_same_bits(params, before)

    def fail_inside() -> None:
        with optimizer.averaged_params():
            params["weight"][...] = 7.0
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        fail_inside()
    assert_same_bits(params, before)


def test_averages_are_asked_for_when_the_optimizer_is_made() -> None:
    with (
        pytest.raises(HyperparameterError, match=r"make the optimizer with ema="),
        isostep.SGD([np.ones(2)]).averaged_params(),
    ):
        pass


@pytest.mark.parametrize(("dialect", "third"), [("tf_keras", -0.125), ("keras", -0.25)])
@pytest.mark.parametrize("engine", ["native", "array"])
def test_both_keras_averages_overwrite_as_computed_by_hand(
    dialect: str, third: float, engine: str
) -> None:
    """SGD, lr = 1, w = 2, g = 1, momentum 0.5, overwritten every third step."""
    start = {"tf_keras": "initial", "keras": "first_update"}[dialect]
    w = np.array([2.0])
    optimizer = isostep.SGD(
        [w], lr=1.0, dialect=dialect, ema=EMA(0.5, overwrite_every=3, start=start), engine=engine
    )
    for _ in range(3):
        optimizer.step([np.ones(1)])
    assert w[0] == third


# -- the plan and its bytes ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("master", [False, True])
@pytest.mark.parametrize("config", FORMS + RECIPES, ids=str)
def test_the_planned_bytes_of_state_are_those_that_are_kept(
    config: Config, master: bool, dtype: str
) -> None:
    optimizer = config.optimizer(parameters(dtype=dtype), engine="array", master_weights=master)
    plan = optimizer.plan()
    for entry in plan.entries:
        kept = optimizer.slots(entry.name)
        assert entry.slots == {slot: (a.shape, a.dtype.name) for slot, a in kept.items()}
        assert entry.state_bytes == sum(a.nbytes for a in kept.values())
        assert ("master" in kept) == (master and dtype == "float16")
    assert plan.state_bytes == optimizer.state_bytes == sum(e.state_bytes for e in plan.entries)


@pytest.mark.parametrize(
    ("rule", "h", "expected"),
    [
        ("SGD", {"momentum": 0.0}, 0),
        ("SGD", {"momentum": 0.9}, 4 * 6000),
        ("Adagrad", {}, 4 * 6000),
        ("RMSprop", {}, 4 * 6000),
        ("RMSprop", {"centered": True, "momentum": 0.9}, 3 * 4 * 6000),
        ("Adadelta", {}, 2 * 4 * 6000),
        ("Adam", {}, 2 * 4 * 6000),
        ("Adam", {"amsgrad": True}, 3 * 4 * 6000),
        ("Adam", {"ema": 0.9}, 3 * 4 * 6000),
        ("Adam", {"state_dtype": "bfloat16"}, 2 * 2 * 6000),
        ("Adam", {"state_dtype": {"exp_avg": "bfloat16"}}, (2 + 4) * 6000),
        ("Adafactor", {}, 4 * 20 * (15 + 20)),  # a row and a column factor for each of 20 matrices
        ("Adafactor", {"dialect": "keras"}, 4 * 20 * (15 + 20)),
        ("Adafactor", {"dialect": "optax", "min_dim_to_factor": 20}, 4 * 15 * (20 + 20)),
        ("Adafactor", {"dialect": "optax"}, 4 * 6000),  # shorter than 128
    ],
)
def test_only_the_state_that_a_rule_needs_is_kept(
    rule: str, h: dict[str, Any], expected: int
) -> None:
    p = {"p": np.zeros((20, 15, 20), np.float32)}
    assert isostep.Optimizer(rule, p, lr=0.1, **h).state_bytes == expected


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("engine", ["native", "array"])
def test_slots_kept_in_low_precision_follow_full_ones_to_their_rounding(
    dtype: str, engine: str
) -> None:
    """A slot of unit roundoff u, averaged with weight 1 - beta, gathers at most u/(1 - beta)."""
    params = {d: parameters(dtype="float32") for d in (dtype, "float32")}
    optimizers = {
        d: isostep.Adam(p, **ADAM, state_dtype=d, engine=engine) for d, p in params.items()
    }
    largest = 0.0
    for step in range(10):
        grads = gradients(step, dtype="float32")
        largest = max(largest, *(float(np.abs(g).max()) for g in grads.values()))
        for optimizer in optimizers.values():
            optimizer.step(grads)
    u = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    decay = ADAM["weight_decay"] * 3  # and what decay adds to a gradient
    for name in params[dtype]:
        low, full = (optimizers[d].slots(name)["exp_avg"] for d in (dtype, "float32"))
        assert low.dtype.name == dtype
        error = np.abs(low.astype(np.float32) - full).max(initial=0.0)
        assert error <= u * (largest + decay) / (1 - ADAM["beta1"])


def test_the_plan_prints_as_a_table_and_compiles_nothing() -> None:
    before = machine_code.compilations
    text = str(isostep.AdamW(tree(), lr=0.123, groups=[Group("*.b", lr=0.5)]).plan())
    for part in (
        "encoder.0.w",
        "2x3",
        "float64",
        "*.b",
        "exp_avg[2x3:float64]",
        "lr=0.123",
        "state",
    ):
        assert part in text
    assert machine_code.compilations == before


@pytest.mark.parametrize("shape", [(40, 9), (3, 40, 30), (2, 16, 3), (9, 8, 5)])
def test_matrices_whose_longer_axis_comes_first_are_walked_where_they_lie(
    shape: tuple[int, ...],
) -> None:
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=shape), [rng.normal(size=shape) for _ in range(3)]
    options: dict[str, Any] = {"dialect": "optax", "lr": 0.25, "min_dim_size_to_factor": 2}
    ends: list[Any] = []
    for engine in ("native", "array"):
        # The same numbers with the axes the other way round, which another walk steps.
        for axes in (tuple(range(len(shape))), (*range(len(shape) - 2), -1, -2)):
            params = {"p": start.transpose(axes).copy()}
            optimizer = isostep.Adafactor(params, **options, engine=engine)
            # Of (9, 8, 5) the first two axes are factored, which are no matrix in memory.
            assert optimizer.plan().entries[0].staged == (shape[0] == 9)
            for g in grads:
                optimizer.step({"p": g.transpose(axes).copy()})
            ends.append(params["p"].transpose(axes))
    for end in ends[1:]:
        np.testing.assert_allclose(end, ends[0], rtol=1e-12, atol=1e-15)


def test_staged_parameters_are_marked_in_the_plan() -> None:
    p = {"dense": np.ones((4, 4)), "turned": np.ones((4, 4)).T, "cut": np.ones((4, 8))[:, ::2]}
    assert [e.staged for e in isostep.Adam(p).plan().entries] == [False, False, True]
    assert [e.staged for e in isostep.Adafactor(p).plan().entries] == [False, True, True]


# -- the report ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["native", "array"])
@pytest.mark.parametrize("config", ["everything", "everything-adafactor"])
def test_a_report_says_what_numpy_says(config: str, engine: str) -> None:
    params = parameters()
    groups = [Group(["weight", "bias"], lr=0.2), Group("rest", lr=0.1)]
    optimizer = BY_NAME[config].optimizer(params, engine=engine, groups=groups)

    def norm(arrays: list[AnyArray]) -> float:
        return float(np.sqrt(sum(np.sum(a.astype(np.float64) ** 2) for a in arrays)))

    members = {
        "weight, bias": ["weight", "bias"],
        "rest": ["rest"],
        "(default)": ["scalar", "kernel"],
    }
    for step in range(3):
        before, grads = copied(params), gradients(step)
        report = optimizer.step({n: g * 4.0 for n, g in grads.items()}, loss_scale=4.0)
        assert report is not None
        assert (report.step, report.skipped, report.nonfinite) == (step + 1, False, 0)
        assert [g.name for g in report.groups] == list(members)
        for group in report.groups:
            names = members[group.name]
            expected = (
                norm([grads[n] for n in names]),
                norm([params[n] - before[n] for n in names]),
                norm([before[n] for n in names]),
            )
            found = (group.grad_norm, group.update_norm, group.param_norm)
            assert found == pytest.approx(expected, rel=1e-12, abs=1e-300)
            ratio = expected[1] / expected[2] if expected[2] else 0.0
            assert group.update_ratio == pytest.approx(ratio, rel=1e-12)
        assert "gradient norm" in str(report)


@pytest.mark.parametrize("engine", ["native", "array"])
def test_a_report_counts_what_is_not_finite_in_each_group(engine: str) -> None:
    params = {"a": np.ones(10, np.float32), "b": np.ones((4, 5), np.float32)}
    optimizer = isostep.AdamW(
        params, nonfinite="skip", report=True, groups=[Group("b")], engine=engine
    )
    grads = {name: np.ones_like(p) for name, p in params.items()}
    grads["a"][[1, 3]] = np.nan, np.inf
    grads["b"][2] = -np.inf
    report = optimizer.step(grads)
    assert report is not None
    assert {g.name: g.nonfinite for g in report.groups} == {"(default)": 2, "b": 5}
    assert (report.step, report.skipped, report.nonfinite) == (0, True, 7)
    assert "(skipped)" in str(report)


def test_no_report_is_returned_unless_asked_for() -> None:
    assert isostep.SGD([np.ones(2)]).step([np.ones(2)]) is None


# -- what is left behind ---------------------------------------------------------------------------


def test_a_thousand_steps_leave_no_objects_behind() -> None:
    params = parameters(dtype="float32")
    optimizer = BY_NAME["everything"].optimizer(params)
    grads = gradients(0, dtype="float32")

    def steps(count: int) -> None:
        for k in range(count):
            optimizer.set(lr=0.1 / (k + 1))
            optimizer.step(grads)

    steps(10)
    gc.collect()
    before = len(gc.get_objects())
    steps(1000)
    gc.collect()
    assert abs(len(gc.get_objects()) - before) < 20


def test_changing_sets_of_gradients_do_not_pile_up() -> None:
    params = {f"p{k}": np.ones(3) for k in range(12)}
    optimizer = isostep.SGD(params, lr=0.1)
    for step in range(100):
        optimizer.step({n: np.ones(3) if (step >> k) % 2 else None for k, n in enumerate(params)})
    assert len(optimizer._stepper._cohorts.recent) < 12


def test_a_step_keeps_no_gradient_alive() -> None:
    for engine in ("native", "array"):
        optimizer = isostep.SGD([np.ones(3)], engine=engine)
        g = np.ones(3)
        watch = weakref.ref(g)
        optimizer.step([g])
        del g
        gc.collect()
        assert watch() is None, engine


# -- bad input -------------------------------------------------------------------------------------

READ_ONLY = np.ones(3)
READ_ONLY.flags.writeable = False
SHARED = np.ones(10)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: isostep.Optimizer("AdmaW", p), UnknownNameError, "did you mean 'AdamW'"),
        (lambda p: isostep.AdamW(p, dialect="pytorch"), UnknownNameError, "mean 'torch'"),
        (
            lambda p: isostep.Adafactor(p, dialect="paddle"),
            UnknownNameError,
            "Paddle has no Adafactor",
        ),
        (lambda p: isostep.AdamW(p, learning_rat=1), UnknownNameError, "'learning_rat'"),
        (lambda p: isostep.AdamW(p, betas1=0.9), UnknownNameError, "did you mean 'beta"),
        (lambda p: isostep.AdamW(p, wieght_decay=0.1), UnknownNameError, "'weight_decay'"),
        (lambda p: isostep.AdamW(p, lr=-1), HyperparameterError, r"lr=-1 is out of range.*\[0"),
        (lambda p: isostep.AdamW(p, lr=float("nan")), HyperparameterError, "lr=nan"),
        (lambda p: isostep.AdamW(p, lr="fast"), HyperparameterError, "lr='fast' is not a number"),
        (lambda p: isostep.AdamW(p, beta2=1.0), HyperparameterError, r"beta2=1\.0.*\[0, 1\)"),
        (lambda p: isostep.AdamW(p, betas=(0.9, 1.5)), HyperparameterError, r"betas\[1\]=1\.5"),
        (lambda p: isostep.AdamW(p, betas=0.9), HyperparameterError, "give 2 values"),
        (lambda p: isostep.AdamW(p, amsgrad=1), HyperparameterError, "use True or False"),
        (lambda p: isostep.SGD(p, buffer="steps"), HyperparameterError, "'direction' or 'step'"),
        (
            lambda p: isostep.AdamW(p, betas=(0.9, 0.9), beta1=0.5),
            HyperparameterError,
            "the same hyperparameter",
        ),
        (lambda p: isostep.Adam(p, dialect="optax"), HyperparameterError, "needs learning_rate"),
        (lambda p: isostep.AdamW(p, clip=1.0), HyperparameterError, "write Clip"),
        (lambda p: isostep.AdamW(p, clip=Clip()), HyperparameterError, "exactly one of"),
        (lambda p: isostep.AdamW(p, clip=Clip(norm=0.0)), HyperparameterError, "norm.*=0.0"),
        (
            lambda p: isostep.AdamW(p, clip=Clip(norm=1.0, value=1.0)),
            HyperparameterError,
            "exactly one of",
        ),
        (lambda p: isostep.AdamW(p, ema=1.5), HyperparameterError, "momentum.*=1.5"),
        (
            lambda p: isostep.AdamW(p, ema=EMA(0.9, overwrite_every=0)),
            HyperparameterError,
            "overwrite_every=0",
        ),
        (lambda p: isostep.AdamW(p, ema=EMA(start="last")), HyperparameterError, "'first_update'"),
        (lambda p: isostep.AdamW(p, decay="couple"), HyperparameterError, "mean 'coupled'"),
        (lambda p: isostep.AdamW(p, nonfinite="ignore"), HyperparameterError, "'propagate'"),
        (lambda p: isostep.AdamW(p, engine="gpu"), HyperparameterError, "'native', 'array'"),
        (lambda p: isostep.AdamW(p, state_dtype="int8"), HyperparameterError, "state_dtype='int8'"),
        (
            lambda p: isostep.AdamW(p, state_dtype={"exp_av": "float16"}),
            UnknownNameError,
            "did you mean 'exp_avg'",
        ),
        (lambda p: isostep.AdamW(p, groups=[Group("x*")]), UnknownNameError, "nearest.*'w'"),
        (lambda p: isostep.AdamW(p, groups=[{"lr": 1.0}]), HyperparameterError, "'match'"),
        (
            lambda p: isostep.AdamW(p, groups=[Group("w", lrr=1.0)]),
            UnknownNameError,
            "did you mean 'lr'",
        ),
        (lambda p: isostep.AdamW({}), ParameterError, "no parameters"),
        (lambda p: isostep.AdamW({"w": [1.0]}), ParameterError, "'w.0' is float"),
        (lambda p: isostep.AdamW({"w": np.ones(2, np.int64)}), ParameterError, "'w' has dtype int"),
        (lambda p: isostep.AdamW({"w": np.ones(2, ">f4")}), ParameterError, "native byte order"),
        (lambda p: isostep.AdamW({"w": np.ones(2, complex)}), ParameterError, "'w' has dtype comp"),
        (lambda p: isostep.AdamW({"w": READ_ONLY}), ParameterError, "'w' is read-only"),
        (
            lambda p: isostep.AdamW({"a": SHARED, "b": SHARED}),
            ParameterError,
            "'a' and 'b' share memory",
        ),
        (
            lambda p: isostep.AdamW({"a": SHARED[:6], "b": SHARED[5:]}),
            ParameterError,
            "'a' and 'b' share memory",
        ),
        (
            lambda p: isostep.AdamW(
                {"w": np.lib.stride_tricks.as_strided(np.ones(1), (5,), (0,), writeable=True)}
            ),
            ParameterError,
            "'w' overlaps itself",
        ),
        (
            lambda p: isostep.AdamW(
                {"w": np.lib.stride_tricks.sliding_window_view(np.ones(9), 3, writeable=True)}
            ),
            ParameterError,
            "'w' overlaps itself",
        ),
        (lambda p: isostep.AdamW({"a": {"b": p["w"]}, "a.b": np.ones(2)}), ParameterError, "'a.b'"),
    ],
)
def test_an_optimizer_that_cannot_be_is_refused_with_the_reason(
    make: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make({"w": np.ones((3, 2)), "b": np.ones(2)})


def test_interleaved_views_that_share_no_element_are_allowed() -> None:
    room = np.zeros((4, 6))
    params = {"even": room[:, ::2], "odd": room[:, 1::2]}
    optimizer = isostep.SGD(params, lr=1.0)
    optimizer.step({"even": np.ones((4, 3)), "odd": -np.ones((4, 3))})
    assert (room[:, ::2] == -1).all()
    assert (room[:, 1::2] == 1).all()


GOOD: dict[str, Any] = {"w": np.ones((3, 2), np.float32), "b": np.ones(2, np.float32)}


@pytest.mark.parametrize("engine", ["native", "array"])
@pytest.mark.parametrize(
    ("grads", "options", "error", "message"),
    [
        ({"w": GOOD["w"]}, {}, GradientError, "no gradient for 'b'"),
        ({**GOOD, "bb": GOOD["b"]}, {}, GradientError, "no parameter is named 'bb'.*mean 'b'"),
        ({"w": GOOD["w"], "B": GOOD["b"]}, {}, GradientError, "did you mean 'b'"),
        ({**GOOD, "w": np.ones((2, 3), np.float32)}, {}, GradientError, r"'w'.*\(2, 3\).*\(3, 2\)"),
        ({**GOOD, "w": np.ones((3, 2), np.int32)}, {}, GradientError, "'w' has dtype int32"),
        ({**GOOD, "w": np.ones((3, 2), ">f4")}, {}, GradientError, "native byte order"),
        ({**GOOD, "b": 1.0}, {}, GradientError, "'b' is float, not a NumPy array"),
        ({**GOOD, "b": [1.0, 1.0]}, {}, GradientError, "'b' is list, not a NumPy array"),
        ([GOOD["w"], GOOD["b"]], {}, GradientError, "no parameter is named '0'"),
        (None, {}, GradientError, "no parameter is named ''"),
        (GOOD, {"loss_scale": 0.0}, HyperparameterError, "loss_scale=0.0"),
        (GOOD, {"loss_scale": -2.0}, HyperparameterError, "loss_scale=-2.0"),
        (GOOD, {"loss_scale": float("nan")}, HyperparameterError, "loss_scale=nan"),
        (GOOD, {"loss_scale": float("inf")}, HyperparameterError, "loss_scale=inf"),
        ({**GOOD, "b": np.array([1, np.nan], np.float32)}, {}, GradientError, r"'b' \(1\)"),
    ],
)
def test_a_refused_step_changes_no_parameter_slot_or_count(
    grads: Any, options: dict[str, Any], error: type[Exception], message: str, engine: str
) -> None:
    params = {"w": np.ones((3, 2), np.float32).T.copy().T, "b": np.ones(4, np.float32)[::2]}
    optimizer = isostep.AdamW(params, nonfinite="raise", ema=0.9, engine=engine)
    optimizer.step(GOOD)
    before = copied(state_of(optimizer, params))
    counts = (optimizer.iteration, optimizer.skipped)
    with pytest.raises(error, match=message):
        optimizer.step(grads, **options)
    assert_same_bits(state_of(optimizer, params), before)
    assert (optimizer.iteration, optimizer.skipped) == counts
    assert {e["step"] for e in optimizer.state_dict()["parameters"].values()} == {1}
    optimizer.step(GOOD)  # and it still works


def test_a_schedule_that_leaves_its_range_refuses_the_step() -> None:
    params = {"w": np.ones(3)}
    optimizer = isostep.AdamW(params, lr=lambda t: 0.1 - t)
    optimizer.step({"w": np.ones(3)})
    before = copied(state_of(optimizer, params))
    with pytest.raises(HyperparameterError, match=r"lr=-0\.9 is out of range"):
        optimizer.step({"w": np.ones(3)})
    assert_same_bits(state_of(optimizer, params), before)
    assert optimizer.iteration == 1


def test_an_unknown_parameter_or_group_is_answered_with_the_nearest() -> None:
    optimizer = isostep.AdamW({"weight": np.ones(2)}, groups=[Group("weight", lr=0.1)])
    with pytest.raises(UnknownNameError, match="did you mean 'weight'"):
        optimizer.slots("wieght")
    with pytest.raises(UnknownNameError, match="did you mean 'weight'"):
        optimizer.set("weihgt", lr=0.1)


def test_every_refusal_is_a_value_error() -> None:
    for error in (GradientError, HyperparameterError, ParameterError, StateError, UnknownNameError):
        assert issubclass(error, ValueError)


def test_an_optimizer_describes_itself() -> None:
    shown = repr(isostep.SGD([np.ones(2)], **SGD))
    assert shown.startswith("SGD(1 parameters, torch: lr=0.07")


@pytest.mark.parametrize(
    ("rule", "saved", "loaded", "options", "goes_on"),
    [
        ("SGD", "torch", "keras", {"momentum": 0.9}, False),
        ("SGD", "torch", "paddle", {"momentum": 0.9}, True),
        ("SGD", "torch", "keras", {}, True),
        ("RMSprop", "keras", "torch", {"momentum": 0.9}, False),
        ("RMSprop", "keras", "torch", {}, True),
        ("Adam", "torch", "optax", {"amsgrad": True}, False),
        ("Adam", "torch", "optax", {}, True),
    ],
)
def test_a_state_goes_on_in_a_dialect_where_its_numbers_mean_the_same(
    rule: str, saved: str, loaded: str, options: dict[str, Any], goes_on: bool
) -> None:
    params = {"w": np.ones((3, 4))}
    first = isostep.Optimizer(rule, params, dialect=saved, lr=0.1, **options)
    first.step({"w": np.ones((3, 4))})
    second = isostep.Optimizer(rule, {"w": np.ones((3, 4))}, dialect=loaded, lr=0.1, **options)
    if goes_on:
        second.load_state_dict(first.state_dict())
        assert second.iteration == 1
    else:
        before = second.state_dict()
        with pytest.raises(StateError, match=f"dialect '{saved}'"):
            second.load_state_dict(first.state_dict())
        assert repr(second.state_dict()) == repr(before)


def test_a_frameworks_own_names_win_over_options_of_the_same_name() -> None:
    one, two = ({"w": np.ones(3)} for _ in range(2))
    isostep.Optimizer("rmsprop", one, dialect="optax", lr=0.1, decay=0.5).step({"w": np.ones(3)})
    isostep.Optimizer("RMSprop", two, dialect="optax", lr=0.1, alpha=0.5).step({"w": np.ones(3)})
    assert np.array_equal(one["w"], two["w"])
    with pytest.raises(HyperparameterError, match=r"decay=0\.5"):
        isostep.Optimizer("RMSprop", two, dialect="torch", decay=0.5)


def test_a_frameworks_second_class_is_found_by_its_name() -> None:
    one, two = ({"w": np.ones(3)} for _ in range(2))
    paddle = isostep.Optimizer("Momentum", one, dialect="paddle", use_nesterov=True)
    torch = isostep.SGD(two, momentum=0.9, nesterov=True)
    assert paddle.rule is torch.rule
    for optimizer in (paddle, torch):
        optimizer.step({"w": np.ones(3)})
    assert np.allclose(one["w"], two["w"], rtol=1e-7)


@pytest.mark.parametrize("engine", ["native", "array"])
def test_a_deep_copy_steps_its_own_arrays_and_leaves_the_original_alone(engine: Any) -> None:
    """Also where the memory of the copy runs in another order than the original's."""
    rng = np.random.default_rng(0)
    params: dict[str, AnyArray] = {
        "a": rng.standard_normal((6, 8)).T[::2],
        "b": rng.standard_normal((3, 4, 5)).astype(np.float16),
        "c": np.asfortranarray(rng.standard_normal((4, 3))),
    }
    optimizer = isostep.AdamW(
        params,
        lr=isostep.schedules.Cosine(0.1, 10),
        engine=engine,
        ema=0.9,
        master_weights=True,
        groups=[Group("b", weight_decay=0.0)],
    )

    def grads(step: int) -> dict[str, AnyArray]:
        return {name: np.full(p.shape, 0.1 * step + 0.2) for name, p in params.items()}

    optimizer.step(grads(0))
    before, state = copied(params), optimizer.state_dict()
    twin_params, twin = copy.deepcopy((params, optimizer))
    alone = copy.deepcopy(optimizer)
    for step in (1, 2):
        twin.step(grads(step))
        alone.step(grads(step))
    twin.set("b", beta1=0.5)
    for name, array in params.items():
        assert np.array_equal(array, before[name])
        assert all(
            np.array_equal(array, state["parameters"][name]["slots"][slot])
            for slot, array in optimizer.slots(name).items()
        )
    assert (optimizer.iteration, twin.iteration, alone.iteration) == (1, 3, 3)
    assert optimizer.state_dict()["groups"]["b"]["beta1"] == 0.9
    for step in (1, 2):
        optimizer.step(grads(step))
    for name, array in params.items():
        assert np.array_equal(array, twin_params[name])
        for slot, kept in optimizer.slots(name).items():
            assert np.array_equal(kept, twin.slots(name)[slot])
            assert np.array_equal(kept, alone.slots(name)[slot])


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy])
def test_a_copy_that_could_not_have_its_arrays_is_refused(duplicate: Callable[[Any], Any]) -> None:
    optimizer = isostep.SGD({"w": np.zeros(3)})
    with pytest.raises(TypeError, match="state_dict"):
        duplicate(optimizer)


@pytest.mark.parametrize("flag", ["maximize", "master_weights", "report"])
@pytest.mark.parametrize("value", ["no", None, 2])
def test_a_flag_is_true_or_false(flag: str, value: Any) -> None:
    with pytest.raises(HyperparameterError, match=f"{flag}=.*True, False"):
        isostep.SGD({"w": np.zeros(3)}, **{flag: value})


@pytest.mark.parametrize("scale", ["2", None, [2.0], 0, -1.0, float("nan"), float("inf")])
def test_a_loss_scale_is_a_positive_number(scale: Any) -> None:
    w = np.zeros(3)
    with pytest.raises(HyperparameterError, match=r"loss_scale=.*\(0, inf\)"):
        isostep.SGD({"w": w}).step({"w": np.ones(3)}, loss_scale=scale)
    assert not w.any()


@pytest.mark.parametrize("rule", [None, isostep.AdamW, {"w": 1}])
def test_a_rule_or_dialect_that_is_no_name_is_refused(rule: Any) -> None:
    with pytest.raises(UnknownNameError, match="by its name"):
        isostep.Optimizer(rule, {"w": np.zeros(3)})
    with pytest.raises(UnknownNameError, match="known: torch"):
        isostep.AdamW({"w": np.zeros(3)}, dialect=rule)


def test_a_hyperparameter_is_no_attribute() -> None:
    params = {"w": np.ones(3)}
    optimizer = isostep.Optimizer("AdamW", params, dialect="keras", lr=0.1)
    for name in ("learning_rate", "beta1", "beta_2", "weight_decay"):
        with pytest.raises(AttributeError, match=rf"optimizer\.set\({name}=\.\.\.\)"):
            setattr(optimizer, name, 0.5)
    optimizer.lr = 0.5
    assert optimizer.lr == 0.5


@pytest.mark.parametrize("value", [True, "0.1", 10**400, None])
def test_what_is_no_number_is_no_hyperparameter(value: Any) -> None:
    with pytest.raises(HyperparameterError, match="is not a number"):
        isostep.AdamW({"w": np.ones(3)}, lr=value)
    with pytest.raises(HyperparameterError, match="is not a number"):
        isostep.EMA(momentum=value)


@pytest.mark.parametrize("damage", [{"iteration": -1}, {"skipped": -2}, {"parameters": {"w": 3}}])
def test_a_damaged_count_is_refused(damage: dict[str, Any]) -> None:
    optimizer = isostep.AdamW({"w": np.ones(3)}, lr=0.1)
    before = repr(optimizer.state_dict())
    with pytest.raises(StateError):
        optimizer.load_state_dict({**optimizer.state_dict(), **damage})
    assert repr(optimizer.state_dict()) == before


def test_an_interrupt_waits_until_arrays_and_counts_agree(monkeypatch: pytest.MonkeyPatch):
    from isostep import stepper

    params = {"w": np.ones(4)}
    optimizer = isostep.AdamW(params)
    execute = stepper.execute

    def interrupted(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return execute(*arguments)

    monkeypatch.setattr(stepper, "execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step({"w": np.ones(4)})
    assert (params["w"] < 1.0).all()
    assert optimizer._stepper.steps.tolist() == [optimizer._stepper.iteration] == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("engine", ["native", "array"])
@pytest.mark.parametrize("decay", ["coupled", "decoupled"])
@pytest.mark.parametrize("rule", [rule for rule in isostep.rules.names() if rule != "Adafactor"])
def test_a_group_without_decay_is_stepped_as_if_nothing_decayed(
    rule: str, decay: str, engine: str
) -> None:
    """Also where a parameter is infinite, as masks are."""

    def stepped(**options: Any) -> AnyArray:
        params = {"weight": np.ones(3), "bias": np.array([-np.inf, 1.0, np.inf])}
        options = {"lr": 0.1, "decay": decay, "engine": engine} | options
        optimizer = getattr(isostep, rule)(params, **options)
        for k in range(3):
            optimizer.step({"weight": np.ones(3), "bias": np.array([0.0, 0.5, k])})
        return params["bias"]

    mixed = stepped(weight_decay=0.1, groups=[Group("bias", weight_decay=0.0)])
    assert not np.isnan(mixed).any()
    np.testing.assert_array_equal(mixed, stepped(weight_decay=0.0))
