"""Laws that hold for any shapes, strides, dtypes and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isostep import GradientError

from .rounding import Twin
from .subprocesses import run
from .table import (
    BY_NAME,
    DTYPES,
    FORMS,
    PLAIN,
    RECIPES,
    SINGLE,
    AnyArray,
    Config,
    assert_same_bits,
    copied,
    gradients,
    named,
    parameters,
    state_of,
)

ENGINES = ("native", "array")
ELEMENTWISE = [config for config in FORMS if config.rule != "Adafactor"]
SIZES = (0, 1, 7, 63, 65, 65535, 65536, 65537)

# -- native against array --------------------------------------------------------------------------


def dense(x: AnyArray) -> AnyArray:
    return x


def fortran(x: AnyArray) -> AnyArray:
    return x.copy(order="F")


def backwards(x: AnyArray) -> AnyArray:
    turn = (..., *[slice(None, None, -1)] * x.ndim)
    return x[turn].copy()[turn]


def every_second(x: AnyArray) -> AnyArray:
    second = (..., *[slice(None, None, 2)] * x.ndim)
    room = np.zeros([2 * n for n in x.shape], x.dtype)
    room[second] = x
    return room[second]


def transposed(x: AnyArray) -> AnyArray:
    return np.moveaxis(np.moveaxis(x, 0, -1).copy(), -1, 0) if x.ndim else x


ARRANGEMENTS: list[Callable[[AnyArray], AnyArray]] = [
    dense,
    fortran,
    backwards,
    every_second,
    transposed,
]
# All dtypes of parameter and gradient for one rule; others in the kernels that they have anyway.
MIXED = [(p, g) for p in DTYPES for g in DTYPES]
SAME = [("float32", "float32"), ("float64", "float64")]

short = st.integers(0, 9)
# Many small matrices (lanes) have a kernel for each shape of matrix: of those, two.
shapes = (
    st.lists(short, max_size=2).map(tuple)
    | st.tuples(st.integers(0, 7), short, short)
    | st.tuples(st.integers(0, 2), st.integers(0, 3), short, short)
    | st.sampled_from([(64, 64), (40, 2, 3, 3), (100, 1, 1), (3, 500), (500, 3), (17, 3, 3)])
)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Config, dict[str, Any], list[dict[str, Any]]]:
    """A rule with hyperparameters, parameters, and gradients for a few steps."""
    config = draw(st.sampled_from(named("adamw", "sgd-momentum", "rmsprop-step-centered",
                                        "adafactor-torch", "clip-global_norm-torch")))  # fmt: skip
    pairs = MIXED if config.name == "adamw" else SAME
    number = st.floats(0.001, 1.0)
    rate = st.floats(0.0, 0.999)
    ranges = {"lr": number, "weight_decay": number, "eps": number, "beta1": rate, "beta2": rate}
    ranges |= {"alpha": rate, "dampening": rate, "eps1": number, "decay_rate": number}
    h = {name: draw(ranges[name]) for name in config.h if name in ranges}
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    params: dict[str, Any] = {}
    steps: list[dict[str, Any]] = [{} for _ in range(draw(st.integers(1, 3)))]
    for k in range(draw(st.integers(1, 3))):
        shape = draw(shapes)
        dtype, grad_dtype = draw(st.sampled_from(pairs))
        size = 10.0 ** draw(st.integers(-3, 1))

        def array(scale: float, dtype: str, shape: tuple[int, ...] = shape) -> AnyArray:
            values = np.asarray(scale * random.normal(size=shape)).astype(DTYPES[dtype])
            return draw(st.sampled_from(ARRANGEMENTS))(values)

        params[f"p{k}"] = array(1.0, dtype)
        for grads in steps:
            grads[f"p{k}"] = array(size, grad_dtype)
    return Config("drawn", config.rule, {**config.h, **h}, clip=config.clip), params, steps


def assert_engines_agree(
    config: Config, params: dict[str, Any], steps: list[dict[str, Any]]
) -> None:
    own = {engine: {n: _same_strides(p) for n, p in params.items()} for engine in ENGINES}
    native, array = (config.optimizer(own[engine], engine=engine) for engine in ENGINES)
    twin = Twin(array)
    for grads in steps:
        before = {name: g.tobytes() for name, g in grads.items()}
        twin.step(grads)
        native.step(grads)
        array.step(grads)
        assert {name: g.tobytes() for name, g in grads.items()} == before  # never written
    found, right = state_of(native, own["native"]), state_of(array, own["array"])
    for name, bound in twin.bounds().items():
        error = np.abs(found[name].astype(np.float64) - right[name].astype(np.float64))
        # Each may be a bound away from the exact value. Where the bound is infinite or NaN, a
        # difference has lost all its digits (centered RMSprop, whose root may even be NaN).
        assert np.all((error <= 2 * bound) | ~np.isfinite(bound)), name
    assert all(ran.startswith("native") for ran in native.ran)


def _same_strides(array: AnyArray) -> AnyArray:
    """A copy that lies in memory as `array` does, gaps included."""
    low, high = np.lib.array_utils.byte_bounds(array)
    room = np.zeros(high - low, np.uint8)
    offset = array.ctypes.data - low
    copy = np.ndarray(array.shape, array.dtype, room, offset, array.strides)
    copy[...] = array
    return copy


@settings(max_examples=120, deadline=None)
@given(problems())
def test_native_equals_array_within_rounding_and_gradients_are_never_written(problem: Any) -> None:
    assert_engines_agree(*problem)


@pytest.mark.parametrize("config", named(*PLAIN, "adafactor-torch"), ids=str)
def test_native_equals_array_at_every_edge_of_a_chunk(config: Config) -> None:
    random = np.random.default_rng(1)
    sizes = {f"n{n}": (n,) for n in SIZES}
    if config.rule == "Adafactor":
        sizes |= {f"rows{n}": (n, 3) for n in SIZES} | {f"columns{n}": (2, n) for n in SIZES}
        sizes |= {f"lanes{n}": (n, 3, 3) for n in SIZES[:6]}
    steps = [
        {n: random.normal(size=s).astype(np.float32) for n, s in sizes.items()} for _ in range(2)
    ]
    params = {n: random.normal(size=s).astype(np.float32) for n, s in sizes.items()}
    assert_engines_agree(config, params, steps)


def test_many_tensors_of_all_dtypes_step_in_one_call() -> None:
    random = np.random.default_rng(2)
    dtypes = list(DTYPES)
    params = {f"p{k}": random.normal(size=k % 5).astype(DTYPES[dtypes[k % 4]]) for k in range(100)}
    grads = [
        {n: random.normal(size=p.shape).astype(p.dtype) for n, p in params.items()}
        for _ in range(2)
    ]
    assert_engines_agree(BY_NAME["adamw"], params, grads)


# -- how values are stored -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_storing_rounds_to_nearest_even(dtype: str) -> None:
    """With a rate of 1, a parameter of 0 becomes the gradient, rounded."""
    kind = DTYPES[dtype]
    grid = np.arange(0, 1 << 16, dtype=np.uint16).view(kind).astype(np.float32)
    grid = grid[np.isfinite(grid)]
    with np.errstate(over="ignore"):
        above = np.nextafter(grid.astype(kind), kind(np.inf)).astype(np.float32)
    middle = (grid.astype(np.float64) + above) / 2  # ties
    near = [np.nextafter(middle.astype(np.float32), np.float32(s)) for s in (np.inf, -np.inf)]
    special = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38, 0.0, -0.0], np.float32)
    g = np.concatenate([grid, middle.astype(np.float32), *near, special])
    g = g[~((np.abs(g) < 2.0**-126) & (g != 0))]  # float32's denormals are flushed
    p = np.zeros(g.size, kind)
    sgd = BY_NAME["sgd"].optimizer({"p": p}, lr=1.0, weight_decay=lambda t: 0.0)
    with np.errstate(all="ignore"):
        expected = (-g).astype(kind)
    sgd.step({"p": g})
    nan = np.isnan(expected.astype(np.float32))
    assert np.array_equal(np.isnan(p.astype(np.float32)), nan)
    assert np.array_equal(p[~nan].astype(np.float32), expected[~nan].astype(np.float32))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_loading_is_exact_for_every_bit_pattern(dtype: str) -> None:
    g = np.arange(0, 1 << 16, dtype=np.uint16).view(DTYPES[dtype])
    wide = g.astype(np.float32)
    p = np.zeros(g.size, np.float32)
    BY_NAME["sgd"].optimizer({"p": p}, lr=1.0, weight_decay=lambda t: 0.0).step({"p": g})
    wide[(np.abs(wide) < 2.0**-126) & (wide != 0)] = 0.0
    assert np.array_equal(p, -wide, equal_nan=True)


# -- special values --------------------------------------------------------------------------------


def poisoned(grads: dict[str, AnyArray]) -> dict[str, AnyArray]:
    grads = copied(grads)
    for name, value in (("bias", np.nan), ("weight", np.inf), ("kernel", -np.inf)):
        grads[name].reshape(-1)[5] = value
    return grads


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("config", named(*PLAIN), ids=str)
def test_a_non_finite_element_spoils_itself_only(config: Config, engine: str) -> None:
    clean, spoilt = parameters(dtype="float32"), parameters(dtype="float32")
    good = config.optimizer(clean, engine=engine)
    bad = config.optimizer(spoilt, engine=engine)
    for step in range(3):
        grads = gradients(step, dtype="float32")
        good.step(grads)
        bad.step(poisoned(grads) if step == 1 else grads)
    for name in ("bias", "weight", "kernel"):
        ours, theirs = spoilt[name].reshape(-1), clean[name].reshape(-1)
        assert not np.isfinite(ours[5])
        keep = np.arange(ours.size) != 5
        assert ours[keep].tobytes() == theirs[keep].tobytes()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize("dialect", ["torch", "keras", "paddle", "optax"])
def test_an_infinite_norm_does_what_the_framework_does(
    dialect: str, bad: float, engine: str
) -> None:
    """Torch, Paddle and optax divide by it, so finite gradients become 0; Keras makes all NaN."""
    config = BY_NAME[f"clip-global_norm-{dialect}"]
    p = {"a": np.ones(3, np.float32), "b": np.ones(3, np.float32)}
    off = {"lr": 1.0, "beta1": 0.0, "weight_decay": lambda t: 0.0}
    optimizer = config.optimizer(p, engine=engine, **off)
    optimizer.step({"a": np.ones(3, np.float32), "b": np.array([1, bad, 1], np.float32)})
    if dialect == "keras" or np.isnan(bad):
        assert all(np.isnan(p[name]).all() for name in p)
    else:
        assert p["a"].tolist() == [1, 1, 1]
        assert np.isnan(p["b"]).tolist() == [False, True, False]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("config", [c for c in FORMS if c in SINGLE], ids=str)
def test_all_zero_gradients_leave_parameters_alone(config: Config, engine: str) -> None:
    params = parameters(dtype="float32")
    before = copied(params)
    quiet = {"weight_decay": lambda t: 0.0} if config.h["weight_decay"] else {}
    optimizer = config.optimizer(params, engine=engine, **quiet)
    for _ in range(3):
        optimizer.step({n: np.zeros_like(p) for n, p in params.items()})
    assert_same_bits(params, before)


# -- splitting, merging, order ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("config", ELEMENTWISE, ids=str)
def test_elementwise_rules_do_not_see_where_a_tensor_is_cut(config: Config, dtype: str) -> None:
    random = np.random.default_rng(3)
    whole = random.normal(size=70001).astype(dtype)
    cuts = [1, 8, 64, 129, 65537]
    parts = {f"p{k}": part.copy() for k, part in enumerate(np.split(whole, cuts))}
    one, many = config.optimizer({"p": whole}), config.optimizer(parts)
    for _ in range(3):
        g = random.normal(size=whole.size).astype(dtype)
        one.step({"p": g})
        many.step({f"p{k}": part for k, part in enumerate(np.split(g, cuts))})
    merged = np.concatenate(list(parts.values()))
    assert merged.tobytes() == whole.tobytes()
    for slot, value in one.slots("p").items():
        pieces = [many.slots(name)[slot] for name in parts]
        assert np.concatenate(pieces).tobytes() == value.tobytes(), slot


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("config", SINGLE, ids=str)
def test_the_order_of_parameters_changes_no_bit(config: Config, engine: str) -> None:
    """Also where one norm is taken over all of them."""
    states: list[dict[str, AnyArray]] = []
    for order in (
        lambda names: names,
        lambda names: names[::-1],
        lambda names: names[2:] + names[:2],
    ):
        params = parameters(dtype="float32")
        params = {name: params[name] for name in order(list(params))}
        optimizer = config.optimizer(params, engine=engine)
        for step in range(4):
            optimizer.step(gradients(step, dtype="float32"), loss_scale=config.loss_scale)
        states.append(state_of(optimizer, params))
    for other in states[1:]:
        assert_same_bits({name: other[name] for name in states[0]}, states[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_one_norm_over_many_tensors_does_not_depend_on_their_order(
    engine: str,
) -> None:
    """In float64, where a sum in another order would show in the last bit of every element."""
    random = np.random.default_rng(8)
    names = [f"p{k}" for k in range(60)]
    params = {name: random.normal(size=5) for name in names}
    for _ in range(20):
        grads = {name: random.normal(size=5) for name in names}
        found: list[dict[str, AnyArray]] = []
        for order in (names, names[::-1], sorted(names)):
            own = {name: params[name].copy() for name in order}
            BY_NAME["clip-global_norm-torch"].optimizer(own, engine=engine).step(grads)
            found.append({name: own[name] for name in names})
        assert_same_bits(found[1], found[0])
        assert_same_bits(found[2], found[0])


THREADED = """
import hashlib, json, sys
import numpy as np
import isostep
from isostep.engines.threads import HOST
from tests.table import named
random = np.random.default_rng(4)
shapes = {"flat": 200_001, "tall": (3001, 50), "wide": (7, 9001), "lanes": (1024, 8, 3, 3)}
isostep.set_num_threads(COUNT)
found = {"threads": HOST.count()}
for config in named("adam", "everything", "adafactor-torch", "everything-adafactor"):
    params = {n: random.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    optimizer = config.optimizer(params)
    for _ in range(3):
        optimizer.step({n: random.normal(size=s).astype(np.float32) for n, s in shapes.items()})
    digest = hashlib.sha256()
    for name, p in params.items():
        for array in (p, *optimizer.slots(name).values()):
            digest.update(np.ascontiguousarray(array).tobytes())
    found[config.name] = digest.hexdigest()
print(json.dumps(found))
"""


def test_the_bits_are_the_same_for_1_2_and_4_threads() -> None:
    found = [run(THREADED.replace("COUNT", str(count))) for count in (1, 2, 4)]
    assert [f.pop("threads") for f in found] == [1, 2, 4]
    assert found[0] == found[1] == found[2]


# -- save and resume -------------------------------------------------------------------------------


def resumed(config: Config, dtype: str, at: int, steps: int, **options: Any) -> dict[str, AnyArray]:
    """The state after `steps`, with everything saved and begun anew after `at` of them."""
    params = parameters(dtype=dtype)
    optimizer = config.optimizer(params, **options)
    for step in range(steps):
        if step == at:
            state, params = optimizer.state_dict(), copied(params)
            optimizer = config.optimizer(params, **options)
            optimizer.load_state_dict(state)
        grads: dict[str, Any] = dict(gradients(step, dtype=dtype))
        if step % 3 == 1:
            grads["bias"] = None
        optimizer.step(grads, loss_scale=config.loss_scale)
    return state_of(optimizer, params)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("config", SINGLE, ids=str)
def test_saving_and_resuming_at_any_step_changes_no_bit(config: Config, engine: str) -> None:
    straight = resumed(config, "float32", -1, 6, engine=engine)
    for at in (0, 1, 3, 5):
        assert_same_bits(resumed(config, "float32", at, 6, engine=engine), straight)


@pytest.mark.parametrize(
    ("config", "dtype", "master"),
    [("everything", "float16", False), ("everything", "bfloat16", True)],
)
def test_saving_and_resuming_low_precision_changes_no_bit(
    config: str, dtype: str, master: bool
) -> None:
    options = {"master_weights": master}
    straight = resumed(BY_NAME[config], dtype, -1, 6, **options)
    assert_same_bits(resumed(BY_NAME[config], dtype, 3, 6, **options), straight)


# -- steps that do not happen ----------------------------------------------------------------------


def assert_skipped(config: Config, params: dict[str, AnyArray], **options: Any) -> None:
    optimizer = config.optimizer(params, **{"nonfinite": "skip", **options})
    dtype = params["weight"].dtype.name
    for step in range(2):
        optimizer.step(gradients(step, dtype=dtype))
    before = copied(state_of(optimizer, params))
    steps = {n: e["step"] for n, e in optimizer.state_dict()["parameters"].items()}
    for _ in range(2):
        optimizer.step(poisoned(gradients(2, dtype=dtype)))
    assert_same_bits(state_of(optimizer, params), before)
    assert (optimizer.iteration, optimizer.skipped) == (2, 2)
    after = {n: e["step"] for n, e in optimizer.state_dict()["parameters"].items()}
    assert after == steps
    optimizer.step(gradients(3, dtype=dtype))
    assert (optimizer.iteration, optimizer.skipped) == (3, 2)
    assert not np.array_equal(params["weight"], before["weight"])


@pytest.mark.parametrize("config", FORMS + RECIPES[:-1], ids=str)
def test_a_skipped_step_changes_no_bit_and_is_counted(config: Config) -> None:
    assert_skipped(config, parameters(dtype="float32"), engine="array")


@pytest.mark.parametrize(
    ("dtype", "master"),
    [("float64", False), ("float32", False), ("float16", False), ("bfloat16", True)],
)
def test_a_skipped_native_step_changes_no_bit_in_any_dtype(dtype: str, master: bool) -> None:
    params = {name: every_second(p) for name, p in parameters(dtype=dtype).items()}
    assert_skipped(BY_NAME["everything"], params, master_weights=master)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_refused_non_finite_step_names_the_parameters_and_changes_no_bit(engine: str) -> None:
    params = parameters(dtype="float32")
    optimizer = BY_NAME["everything-adafactor"].optimizer(params, engine=engine)
    optimizer.step(gradients(0, dtype="float32"))
    before = copied(state_of(optimizer, params))
    with pytest.raises(GradientError, match=r"step 2: .*'bias' \(1\), 'weight' \(1\), 'kernel'"):
        optimizer.step(poisoned(gradients(1, dtype="float32")))
    assert_same_bits(state_of(optimizer, params), before)
    assert optimizer.iteration == 1


# -- gradients that lie in parameters --------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shift", [0, 1, 5, -3])
def test_a_gradient_in_a_parameters_memory_acts_as_a_copy_of_it(shift: int, engine: str) -> None:
    memory = np.random.default_rng(5).normal(size=300)

    def stepped(alias: bool) -> AnyArray:
        room = memory.copy()
        p = {"a": room[10:110], "b": room[110:280]}
        g = {"a": room[10 + shift : 110 + shift], "b": room[110 + shift : 280 + shift]}
        optimizer = BY_NAME["sgd-momentum"].optimizer(p, engine=engine)
        for _ in range(2):
            optimizer.step(g if alias else copied(g))
        return room

    assert stepped(alias=True).tobytes() == stepped(alias=False).tobytes()


@pytest.mark.parametrize("engine", ENGINES)
def test_one_array_may_be_the_gradient_of_several_parameters(engine: str) -> None:
    g = np.random.default_rng(6).normal(size=65)
    p = {"a": np.ones(65), "b": np.ones(65), "c": np.ones((65, 3))}
    grads = {"a": g, "b": g, "c": np.broadcast_to(g[:, None], (65, 3))}
    grads["c"].flags.writeable = False
    BY_NAME["adam"].optimizer(p, engine=engine).step(grads)
    assert p["a"].tobytes() == p["b"].tobytes() == p["c"][:, 1].tobytes()


def test_parameters_and_gradients_of_any_strides_step_as_dense_ones() -> None:
    """Bit for bit: what changes is only where elements lie."""
    for config in named("adam", "adafactor-torch"):
        dense_params = parameters(dtype="float32")
        straight = config.optimizer(dense_params)
        for arrange in ARRANGEMENTS:
            params = {name: arrange(p.copy()) for name, p in parameters(dtype="float32").items()}
            optimizer = config.optimizer(params)
            dense_again = parameters(dtype="float32")
            straight = config.optimizer(dense_again)
            for step in range(3):
                grads = gradients(step, dtype="float32")
                straight.step(grads)
                optimizer.step({name: arrange(g) for name, g in grads.items()})
            assert_same_bits(state_of(optimizer, params), state_of(straight, dense_again))


def test_what_lies_between_the_elements_of_a_strided_parameter_is_not_touched() -> None:
    room = np.full((8, 6), 7.0, np.float32)
    BY_NAME["adam"].optimizer({"p": room[::2, 1::3]}).step({"p": np.ones((4, 2), np.float32)})
    touched = room != 7.0
    assert touched[::2, 1::3].all()
    assert touched.sum() == 8
