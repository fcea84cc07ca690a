"""Laws of the compiler: from a recipe to passes to source."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np
import pytest

import isostep
from isostep import dialects
from isostep.compile import machine_code
from isostep.compile.arrays import Array
from isostep.compile.layout import Layout
from isostep.compile.numba_source import write_module
from isostep.compile.schedule import Pass, Schedule, schedule
from isostep.compile.trace import REDUCTIONS, Graph, Symbol, SymbolNamespace, ancestors, join
from isostep.recipe import Recipe
from isostep.tracing import trace

from .table import BY_NAME, FORMS, PLAIN, RECIPES, Config, gradients, named, parameters

ALL = FORMS + RECIPES
LAYOUTS: tuple[Layout, ...] = ("flat", "rows", "lanes")


def recipe_of(config: Config, factored: bool, **options: Any) -> Recipe:
    """The recipe of a matrix (or, not factored, of a vector) under a configuration."""
    params = {"p": np.zeros((8, 8) if factored else 8)}
    stepper = config.optimizer(params, engine="array", **options)._stepper
    (leaf,) = stepper.leaves
    return stepper.recipe(leaf)


def plan_of(config: Config, factored: bool = False, **options: Any) -> Schedule:
    return trace(recipe_of(config, factored, **options))


def factored_forms() -> list[tuple[Config, bool]]:
    """Every configuration for vectors, and for matrices where they are walked otherwise."""
    can = [c for c in ALL if c.rule == "Adafactor" and c.h["factored"]]
    return [(config, False) for config in ALL] + [(config, True) for config in can]


EVERY = [pytest.param(c, f, id=f"{c}{'-factored' * f}") for c, f in factored_forms()]

# -- passes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [c for c in FORMS if c.rule != "Adafactor"], ids=str)
@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, 1),
        ({"clip": isostep.Clip(value=1.0)}, 1),
        ({"ema": 0.9, "report": True, "maximize": True}, 1),
        ({"clip": isostep.Clip(norm=1.0)}, 2),
        ({"clip": isostep.Clip(global_norm=1.0)}, 2),
        ({"nonfinite": "skip"}, 2),
        ({"nonfinite": "raise", "clip": isostep.Clip(global_norm=1.0), "report": True}, 2),
    ],
    ids=str,
)
def test_an_elementwise_rule_takes_one_pass_and_one_more_for_what_must_be_known_first(
    config: Config, options: dict[str, Any], passes: int
) -> None:
    assert len(plan_of(config, **options).passes) == passes


@pytest.mark.parametrize(
    ("name", "factored", "options", "passes"),
    [
        ("adafactor", True, {}, 3),  # factors; update and its size; parameter
        ("adafactor", True, {"clip": isostep.Clip(global_norm=1.0)}, 4),
        ("adafactor", True, {"nonfinite": "skip"}, 4),
        ("adafactor", True, {"report": True, "ema": 0.9}, 3),
        ("adafactor", False, {}, 2),
        ("adafactor", False, {"clip": isostep.Clip(global_norm=1.0)}, 3),
        ("adafactor-bare", True, {}, 2),
        ("adafactor-bare", False, {}, 1),
        ("adafactor-optax", True, {}, 3),
    ],
)
def test_adafactor_takes_a_pass_for_each_reduction_that_waits_for_another(
    name: str, factored: bool, options: dict[str, Any], passes: int
) -> None:
    assert len(plan_of(BY_NAME[name], factored, **options).passes) == passes


@pytest.mark.parametrize(("config", "factored"), EVERY)
def test_a_pass_reads_and_writes_each_array_at_most_once(config: Config, factored: bool) -> None:
    for step in plan_of(config, factored).passes:
        read = [n.name for n in step.inputs if not n.is_host] + list(step.carried.values())
        assert len(read) == len(set(read))
        assert len(step.stores) == len(set(step.stores))


@pytest.mark.parametrize(("config", "factored"), EVERY)
def test_elements_are_written_in_the_last_pass_only_and_everything_exactly_once(
    config: Config, factored: bool
) -> None:
    recipe = recipe_of(config, factored)
    plan = trace(recipe)
    for step in plan.passes[:-1]:
        assert all(s.domain != "element" for s in step.stores.values())
    written = [name for step in plan.passes for name in step.stores]
    slots = {slot.name for slot in recipe.rule.active_slots(recipe.o)}
    expected = {"param"} | slots | ({"average"} if recipe.average else set())
    assert sorted(written) == sorted(expected)


@pytest.mark.parametrize(("config", "factored"), EVERY)
def test_nothing_is_written_before_a_step_is_known_to_be_finite(
    config: Config, factored: bool
) -> None:
    plan = plan_of(config, factored, nonfinite="skip")
    assert plan.blocked is not None
    assert plan.passes[0].stores == {}
    assert len(plan.passes) >= 2


@pytest.mark.parametrize(("config", "factored"), EVERY)
def test_each_pass_computes_only_what_its_own_results_need(config: Config, factored: bool) -> None:
    for step in plan_of(config, factored).passes:
        needed = set(ancestors([*step.stores.values(), *step.reductions]))
        assert set(step.nodes) <= needed
        known: set[Symbol] = {*step.scalars, *step.inputs, *step.carried}
        for node in step.nodes:  # in an order of evaluation
            assert all(a in known or a.op == "constant" for a in node.args)
            known.add(node)


@pytest.mark.parametrize(("config", "factored"), EVERY)
def test_the_plan_counts_the_bytes_of_these_passes(config: Config, factored: bool) -> None:
    """Once over every array that a pass reads or writes: what the benchmark divides by."""
    shape = (8, 8) if factored else (64,)
    optimizer = config.optimizer({"p": np.zeros(shape)}, engine="array")
    plan = trace(optimizer._stepper.recipe(optimizer._stepper.leaves[0]))
    sizes = {"grad": 512, "param": 512}
    sizes |= {slot: array.nbytes for slot, array in optimizer.slots("p").items()}
    moved = 0
    for step in plan.passes:
        names = {n.name for n in step.inputs} | set(step.carried.values())
        moved += sum(sizes[n] for n in names) + sum(sizes[n] for n in step.stores)
    assert optimizer.plan().step_bytes == moved


def test_a_plain_step_moves_the_least_bytes_there_are() -> None:
    def moved(name: str, **options: Any) -> int:
        return BY_NAME[name].optimizer({"p": np.zeros(100)}, **options).plan().step_bytes // 800

    assert moved("sgd") == 3  # read gradient and parameter, write parameter
    assert moved("sgd-momentum") == 5
    assert moved("adam") == 7
    assert moved("clip-global_norm-torch") == 8  # one more read of the gradient
    assert moved("ema-initial") == 7


# -- the graph -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "factored"), EVERY)
def test_equal_expressions_are_one_node(config: Config, factored: bool) -> None:
    nodes = plan_of(config, factored).graph.nodes
    keys = [(n.op, tuple(a.index for a in n.args), n.domain, n.name, repr(n.value)) for n in nodes]
    assert len(keys) == len(set(keys))


def test_equal_expressions_are_one_node_and_different_ones_are_not() -> None:
    graph = Graph()
    x, y = graph.input("x", "element"), graph.input("y", "row")
    assert x * y + 1.0 is x * y + 1
    assert x - y is not y - x
    assert graph.constant(0.0) is not graph.constant(-0.0)
    assert graph.constant(float("nan")) is graph.constant(float("nan"))
    assert graph.input("x", "element") is x


def test_operators_broadcast_upward_and_reductions_lead_down() -> None:
    graph = Graph()
    xp = SymbolNamespace(graph)
    element = graph.input("x", "element")
    row, column = graph.input("r", "row"), graph.input("c", "column")
    scalar = graph.input("s", "tensor")
    assert (row * column).domain == "element"
    assert (row * scalar).domain == "row"
    assert (element + row).domain == "element"
    assert (scalar + 1).domain == "tensor"
    assert xp.mean(element, per="row").domain == "row"
    assert xp.mean(row, per="matrix").domain == "matrix"
    assert xp.sum(element, per="step").domain == "step"
    for a in ("step", "tensor", "matrix", "row", "column", "element"):
        assert join(a, a) == a
        assert join(a, "element") == join("element", a) == "element"


@pytest.mark.parametrize("compare", ["__gt__", "__ge__", "__lt__", "__le__"])
def test_a_traced_value_has_no_truth_value(compare: str) -> None:
    x = Graph().input("x", "element")
    with pytest.raises(TypeError, match=r"no truth value: decide with xp\.where"):
        bool(getattr(x, compare)(0))
    with pytest.raises(TypeError, match="no truth value"):
        max(x, 0.0)


DOMAINS = ("step", "tensor", "matrix", "row", "column", "element")


@pytest.mark.parametrize(
    ("source", "per"),
    [
        (a, b)
        for a in DOMAINS
        for b in DOMAINS
        if (a, b) not in REDUCTIONS and (a, b) != ("element", "step")
    ],
)
def test_a_reduction_that_no_pass_can_place_is_refused(source: Any, per: Any) -> None:
    graph = Graph()
    with pytest.raises(ValueError, match=f"cannot reduce from {source} to {per}; possible are"):
        graph.reduce("sum", graph.input("x", source), per)


def test_a_reduction_of_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot reduce from float to tensor"):
        Graph().reduce("mean", 1.0, "tensor")


def test_a_row_value_that_a_later_pass_needs_must_be_a_slot() -> None:
    graph = Graph()
    xp = SymbolNamespace(graph)
    g = graph.input("grad", "element")
    mean = xp.mean(g * g, per="row")
    with pytest.raises(ValueError, match="only a slot can carry it there"):
        schedule(graph, {"param": g * mean}, {})


def test_what_follows_from_a_slot_is_computed_again_in_a_later_pass() -> None:
    graph = Graph()
    xp = SymbolNamespace(graph)
    g, old = graph.input("grad", "element"), graph.input("size", "row")
    size = old + xp.mean(g * g, per="row")
    first, second = schedule(graph, {"param": g / (size + 1.0), "size": size}, {}).passes
    assert list(first.stores) == ["size"]
    assert list(second.carried.values()) == ["size"]
    assert [n.name for n in second.inputs] == ["grad"]


def test_the_old_value_of_a_slot_is_not_read_after_it_was_overwritten() -> None:
    graph = Graph()
    xp = SymbolNamespace(graph)
    g, old = graph.input("grad", "element"), graph.input("size", "row")
    size = old + xp.mean(g * g, per="row")
    total = xp.sum(g * g, per="tensor")  # makes a second pass, which would find the new size
    with pytest.raises(ValueError, match="only a slot can carry it there"):
        schedule(graph, {"param": g * old * total, "size": size}, {})


# -- source ----------------------------------------------------------------------------------------


def write(config: Config, layout: Layout, dtype: str) -> tuple[str, Schedule]:
    recipe = recipe_of(config, layout != "flat")
    wide = "float64" if dtype == "float64" else "float32"
    slots = [Array(s.name, wide) for s in recipe.rule.active_slots(recipe.o)]
    average = [Array("average", wide)] if recipe.average else []
    arrays = [Array("grad", dtype), Array("param", dtype), *slots, *average]
    plan = trace(recipe)
    return write_module(plan, arrays, layout, config.rule), plan


def sums_columns(step: Pass) -> bool:
    return any(r.domain == "column" for r in step.reductions)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_source_of_every_layout_is_python_with_one_function_for_each_sweep(
    layout: Layout, dtype: str
) -> None:
    factored = [c for c in ALL if c.rule == "Adafactor" and c.h["factored"]]
    for config in ALL if layout == "flat" else factored:
        source, plan = write(config, layout, dtype)
        functions = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)]
        sweeps = [f.name for f in functions if f.name.startswith("pass_")]
        assert sweeps == [f"pass_{number}" for number in range(len(plan.passes))]
        finishers = {f"columns_{k}" for k, step in enumerate(plan.passes) if sums_columns(step)}
        assert {f.name for f in functions} - {*sweeps} == (finishers if layout == "rows" else set())
        assert all(ast.get_docstring(f) for f in functions)
        compile(source, "<generated>", "exec")
        assert max(map(len, source.splitlines())) < 250


@pytest.mark.parametrize("config", named(*PLAIN, "everything"), ids=str)
def test_a_kernel_loads_and_stores_each_array_once_in_each_pass(config: Config) -> None:
    source, plan = write(config, "flat", "float32")
    for function, step in zip(
        ast.parse(source).body[-len(plan.passes) :], plan.passes, strict=True
    ):
        subscripts = [n for n in ast.walk(function) if isinstance(n, ast.Subscript)]
        kinds: dict[type, list[str]] = {ast.Load: [], ast.Store: []}
        for n in subscripts:
            if isinstance(n.value, ast.Name) and n.value.id.endswith("_at"):
                kinds[type(n.ctx)].append(n.value.id.removesuffix("_at"))
        assert sorted(kinds[ast.Load]) == sorted(n.name for n in step.inputs if not n.is_host)
        assert sorted(kinds[ast.Store]) == sorted(step.stores)


def test_the_source_that_a_user_is_shown_is_the_source_that_runs() -> None:
    params = parameters(dtype="float32")
    optimizer = BY_NAME["adam"].optimizer(params)
    optimizer.step(gradients(0, dtype="float32"))
    assert "def pass_0(low, high, context):" in optimizer.source()
    (runner,) = optimizer._stepper.last
    assert optimizer.source() == runner.kernel.source


# -- compiling -------------------------------------------------------------------------------------


def test_coefficients_are_read_at_run_time_so_that_100_rates_are_one_compilation(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOSTEP_CACHE_DIR", str(tmp_path))
    machine_code._kernels.clear()
    p = {"p": np.ones(10, np.float32)}
    optimizer = BY_NAME["sgd-momentum"].optimizer(p)
    before = machine_code.compilations
    for k in range(100):
        optimizer.set(lr=0.1 / (k + 1), momentum=0.9 - k / 1000, weight_decay=0.1 / (k + 1))
        optimizer.step({"p": np.ones(10, np.float32)})
    assert machine_code.compilations == before + 1


def test_equal_recipes_share_one_schedule_and_one_kernel() -> None:
    first, second = (BY_NAME["adam"].optimizer(parameters(dtype="float32")) for _ in range(2))
    for optimizer in (first, second):
        optimizer.step(gradients(0, dtype="float32"))
    ours, theirs = first._stepper.last[0], second._stepper.last[0]
    assert ours.cohort.schedule is theirs.cohort.schedule
    assert ours.kernel is theirs.kernel


def test_every_dialect_of_a_rule_with_the_same_form_shares_one_kernel() -> None:
    """What separates dialects is in the coefficients or in a switch, never in other code."""
    sources = {
        dialect: isostep.Adam(
            {"p": np.zeros(3, np.float32)}, lr=0.1, dialect=dialect, engine="native"
        ).source()
        for dialect in dialects.names()
    }
    assert len(set(sources.values())) == 1
