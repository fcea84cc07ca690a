"""optax' contract, ours beside theirs: `python -m tests.jax_frontend.contract_worker`.

Prints one JSON object: by look a list of the cases that differ, and how many there were.
"""

from __future__ import annotations

import gc
import inspect
import json
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import isostep.jax
from tests.jax_frontend.worker import worst

SCHEDULE = optax.linear_schedule(0.5, 0.25, 4)
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("sgd", {"learning_rate": 0.125}),
    "sgd momentum": ("sgd", {"learning_rate": 0.125, "momentum": 0.75, "nesterov": True}),
    "sgd zero momentum": ("sgd", {"learning_rate": SCHEDULE, "momentum": 0.0}),
    "adagrad": ("adagrad", {"learning_rate": 0.25, "initial_accumulator_value": 0.25}),
    "rmsprop": ("rmsprop", {"learning_rate": 0.125, "initial_scale": 0.25, "momentum": 0.5}),
    "rmsprop centered": (
        "rmsprop",
        {"learning_rate": SCHEDULE, "centered": True, "bias_correction": True, "eps": 0.25},
    ),
    "adadelta": ("adadelta", {"learning_rate": 0.5, "eps": 1e-2, "weight_decay": SCHEDULE}),
    "adadelta bare": ("adadelta", {}),
    "adam": ("adam", {"learning_rate": 0.125, "eps_root": 1e-4}),
    "adam nesterov": ("adam", {"learning_rate": SCHEDULE, "nesterov": True}),
    "adamw": ("adamw", {"learning_rate": 0.125, "weight_decay": SCHEDULE}),
    "adamw mu": ("adamw", {"learning_rate": 0.125, "mu_dtype": "bfloat16"}),
    "amsgrad": ("amsgrad", {"learning_rate": 0.125}),
    "adafactor": ("adafactor", {"min_dim_size_to_factor": 2}),
    "adafactor momentum": (
        "adafactor",
        {
            "learning_rate": SCHEDULE,
            "min_dim_size_to_factor": 2,
            "momentum": 0.5,
            "weight_decay_rate": 0.0625,
        },
    ),
}
REAL = ("float64", "float32", "bfloat16", "float16")
COMPLEX = ("complex64", "complex128")


def pair(rule: str, **more: Any) -> tuple[Any, Any]:
    """Their optimizer, and ours."""
    name, given = RULES[rule]
    return tuple(getattr(m, name)(**given, **more) for m in (optax, isostep.jax))  # type: ignore


def numbers(seed: int, shape: tuple[int, ...], dtype: str) -> Any:
    random = np.random.default_rng(seed)
    values = random.normal(size=shape)
    if dtype.startswith("complex"):
        values = values + 1j * random.normal(size=shape)
    return jnp.asarray(values).astype(dtype)


def tree(seed: int, dtype: str) -> Any:
    return {"matrix": numbers(seed, (3, 4), dtype), "vector": numbers(seed + 1, (4,), dtype)}


def described(tree: Any) -> Any:
    """Structure, shapes and dtypes."""
    leaves, structure = jax.tree.flatten(tree)
    return str(structure), [(x.shape, str(x.dtype)) for x in leaves]


def differing(cases: dict[str, Callable[[], tuple[Any, Any]]]) -> dict[str, Any]:
    """The cases in which both give something else, or raise another kind of error."""
    found: dict[str, Any] = {"cases": len(cases), "differ": []}
    for name, case in cases.items():
        theirs, ours = case()
        if theirs != ours:
            found["differ"].append([name, str(theirs), str(ours)])
    return found


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gives, or the kind of its error."""
    try:
        return call()
    except Exception as error:
        # What JAX calls not implemented outside of functions is a wrong type inside.
        if isinstance(error, TypeError | NotImplementedError):
            return "TypeError"
        return "ValueError" if isinstance(error, ValueError) else type(error).__name__


def signatures() -> dict[str, Any]:
    """Every argument of optax' functions, its default and place, and after them our own."""
    names = dict.fromkeys(name for name, _ in RULES.values())
    cases: dict[str, Callable[[], tuple[Any, Any]]] = {}
    for name in (*names, "nadam", "nadamw"):

        def case(name: str = name) -> tuple[Any, Any]:
            theirs, ours = (
                list(inspect.signature(getattr(m, name)).parameters.values())
                for m in (optax, isostep.jax)
            )
            kept = [(p.name, p.default, p.kind) for p in ours[: len(theirs)]]
            return [(p.name, p.default, p.kind) for p in theirs], kept

        cases[name] = case
    return differing(cases)


def dtypes() -> dict[str, Any]:
    """Updates and states after one and two steps, for each pair of dtypes."""
    pairs = [(a, b) for kinds in (REAL, COMPLEX) for a in kinds for b in kinds]
    pairs += [("float32", "complex64"), ("complex64", "float32"), ("int32", "float32")]
    pairs += [("int32", "int32"), ("bool", "float32")]
    cases: dict[str, Callable[[], tuple[Any, Any]]] = {}
    for rule in RULES:
        for of_params, of_grads in pairs:

            def steps(optimizer: Any, a: str = of_params, b: str = of_grads) -> Any:
                params, grads = tree(0, a), tree(2, b)

                def two(params: Any, grads: Any) -> Any:
                    state = optimizer.init(params)
                    update, after = optimizer.update(grads, state, params)
                    return state, update, after, optimizer.update(grads, after, params)

                return described(jax.eval_shape(two, params, grads))

            cases[f"{rule}: {of_params} by {of_grads}"] = lambda rule=rule, steps=steps: tuple(
                outcome(lambda o=o: steps(o)) for o in pair(rule)
            )
    return differing(cases)


def rates() -> dict[str, Any]:
    """Rates in every form that people give, and the dtypes that come of it."""
    forms: dict[str, Any] = {
        "python": 0.5,
        "integer": 1,
        "numpy number": np.float32(0.5),
        "numpy array": np.array(0.5),
        "array": jnp.array(0.5, "float32"),
        "low array": jnp.array(0.5, "bfloat16"),
        "schedule": lambda count: 0.5 / (count + 1),
        "schedule of arrays": lambda count: jnp.float32(0.5) / (count + 1),
    }
    cases: dict[str, Callable[[], tuple[Any, Any]]] = {}
    for rule, (name, given) in RULES.items():
        for form, rate in forms.items():
            for dtype in ("float32", "bfloat16"):

                def step(m: Any, name: str = name, given: Any = given, rate: Any = rate) -> Any:
                    return getattr(m, name)(**{**given, "learning_rate": rate})

                def case(step: Any = step, dtype: str = dtype) -> Any:
                    def run(m: Any) -> Any:
                        o, p = step(m), tree(0, dtype)
                        return jax.eval_shape(lambda p: o.update(p, o.init(p), p), p)

                    return tuple(described(run(m)) for m in (optax, isostep.jax))

                cases[f"{rule}: {form}, {dtype}"] = case
    return differing(cases)


def leaves() -> dict[str, Any]:
    """Leaves that are no arrays of numbers."""
    zero = np.zeros(3, jax.dtypes.float0)
    key = jax.random.key(0)
    given = {
        "none": (None, None),
        "no gradient": (jnp.ones(3), None),
        "no tangent of integers": (jnp.arange(3), zero),
        "no tangent": (jnp.ones(3), zero),
        "key": (key, key),
        "key without tangent": (key, np.zeros((), jax.dtypes.float0)),
        "masked": (optax.MaskedNode(), optax.MaskedNode()),
        "empty": (jnp.ones((0, 3)), jnp.ones((0, 3))),
        "scalar": (jnp.ones(()), jnp.ones(())),
    }
    cases: dict[str, Callable[[], tuple[Any, Any]]] = {}
    for rule in RULES:
        for leaf, (param, gradient) in given.items():

            def step(o: Any, p: Any = param, g: Any = gradient) -> Any:
                params, grads = {"a": p, "b": jnp.ones(2)}, {"a": g, "b": jnp.ones(2)}
                update, _ = o.update(grads, o.init(params), params)
                return described(update)

            def case(rule: str = rule, leaf: str = leaf, step: Any = step) -> Any:
                theirs, ours = (outcome(lambda o=o: step(o)) for o in pair(rule))
                # Some of optax' rules fail without a gradient; ours all leave the parameter alone.
                fails = leaf == "no gradient" and isinstance(theirs, str)
                return (ours if fails else theirs), ours

            cases[f"{rule}: {leaf}"] = case
    return differing(cases)


def shapes() -> dict[str, Any]:
    """States of shapes, under eval_shape, of bare arrays and of trees without leaves."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("x", "y"))
    lay = NamedSharding(mesh, PartitionSpec("x", "y"))
    struct = jax.ShapeDtypeStruct((4, 8), jnp.float32, sharding=lay)
    given = {
        "struct": jax.ShapeDtypeStruct((4, 8), jnp.float32),
        "array": jnp.ones((4, 8)),
        "tree without leaves": {"a": None, "b": ()},
        "nothing": None,
    }
    cases: dict[str, Callable[[], tuple[Any, Any]]] = {}
    for rule in RULES:
        for name, params in given.items():

            def case(rule: str = rule, params: Any = params) -> Any:
                return tuple(described(o.init(params)) for o in pair(rule))

            def abstract(rule: str = rule, params: Any = params) -> Any:
                return tuple(described(jax.eval_shape(o.init, params)) for o in pair(rule))

            def extended(rule: str = rule, params: Any = params) -> Any:
                more = with_extras(rule)
                shaped = jax.eval_shape(lambda p: more.to_optax(more.init(p), p), params)
                return described(shaped), described(jax.eval_shape(pair(rule)[1].init, params))

            cases[f"{rule}: {name}"] = case
            cases[f"{rule}: {name}, abstract"] = abstract
            cases[f"{rule}: {name}, with an average"] = extended

        def sharded(rule: str = rule) -> Any:
            _, ours = pair(rule)
            slots = [x for x in jax.tree.leaves(ours.init(struct)) if x.shape == (4, 8)]
            planned = ours.plan({"a": struct}).entries[0].shape
            return [lay] * len(slots) + [(4, 8)], [x.sharding for x in slots] + [planned]

        cases[f"{rule}: sharded"] = sharded
    return differing(cases)


def edited_states() -> dict[str, Any]:
    """States that users have put together anew, of another structure than `init` gives."""
    params = tree(0, "float64")
    grads = tree(2, "float64")

    def step(o: Any, edit: Callable[[Any], Any]) -> Any:
        return outcome(lambda: described(o.update(grads, edit(o.init(params)), params)))

    edits: dict[str, Callable[[Any], Any]] = {
        "cut": lambda state: state[:-1],
        "longer": lambda state: (*state, optax.EmptyState()),
        "a list": list,
        "nothing": lambda _: (),
    }
    cases: dict[str, Callable[[], tuple[Any, Any]]] = {}
    for rule in RULES:
        for name, edit in edits.items():

            def case(rule: str = rule, edit: Any = edit) -> Any:
                return tuple(step(o, edit) for o in pair(rule))

            cases[f"{rule}: {name}"] = case
    return differing(cases)


def with_extras(rule: str) -> Any:
    """Ours with more to keep than optax has a place for."""
    name, given = RULES[rule]
    return getattr(isostep.jax, name)(**given, ema=0.5, report=True)


def explicit() -> dict[str, Any]:
    """Types of states on a mesh whose axes are explicit."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    lay = NamedSharding(mesh, PartitionSpec(None, "x"))
    cases: dict[str, Callable[[], tuple[Any, Any]]] = {}
    for rule in RULES:

        def case(rule: str = rule) -> Any:
            with jax.set_mesh(mesh):
                params = jnp.zeros((2, 8, 4), jnp.float32, out_sharding=lay)

                def step(o: Any) -> Any:
                    state = o.init(params)
                    update, after = o.update(params, state, params)
                    return [str(jax.typeof(x)) for x in jax.tree.leaves((state, update, after))]

                return tuple(step(o) for o in pair(rule))

        cases[rule] = case
    return differing(cases)


def complex_numbers() -> dict[str, float]:
    """Complex parameters after five steps, by updates and in the fused form."""
    found: dict[str, float] = {}
    for rule in RULES:
        theirs, ours = pair(rule)

        @jax.jit
        def step(kept: Any, grads: Any, theirs: Any = theirs, ours: Any = ours) -> Any:
            fused = ours.apply(kept[2][0], grads, kept[2][1])
            return updated(theirs, *kept[0], grads), updated(ours, *kept[1], grads), fused

        params = tree(0, "complex128")
        assert all(entry.dtype == "complex128" for entry in ours.plan(params).entries)
        kept: Any = [(params, o.init(params)) for o in (theirs, ours, ours)]
        for k in range(5):
            kept = step(kept, tree(10 + 2 * k, "complex128"))
        ends = [jax.tree.leaves(end) for end in kept]
        found[rule] = max(
            apart(a, b) for end in ends[1:] for a, b in zip(ends[0], end, strict=True)
        )
    return found


def updated(optimizer: Any, params: Any, state: Any, grads: Any) -> Any:
    """A step by updates."""
    update, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, update), state


def apart(a: Any, b: Any) -> float:
    """How far two arrays are apart, of the larger's size."""
    a, b = np.asarray(a), np.asarray(b)
    wide = np.result_type(a.astype("complex128") if np.iscomplexobj(a) else a.astype("float64"))
    a, b = a.astype(wide), b.astype(wide)
    return float(np.max(np.abs(a - b), initial=0.0) / (np.max(np.abs(a), initial=0.0) + 1e-30))


def refusals() -> dict[str, list[str]]:
    """What is refused, in words."""
    found: dict[str, list[str]] = {}
    wave, count = {"wave": jnp.ones(2, "complex64")}, {"count": jnp.arange(3)}

    def note(name: str, call: Callable[[], Any]) -> None:
        try:
            call()
            found[name] = ["", ""]
        except Exception as error:
            found[name] = [type(error).__name__, str(error)]

    ours = isostep.jax
    native = ours.adam(0.1, engine="native")
    note("complex, torch", lambda: ours.adam(0.1, dialect="torch").init(wave))
    note("complex, value", lambda: ours.adam(0.1, clip=isostep.Clip(value=1.0), ema=0.5).init(wave))
    note("complex, dtype", lambda: ours.adam(0.1, state_dtype="bfloat16").init(wave))
    note("integers, extra", lambda: ours.adam(0.1, ema=0.5).init(count))
    note("integers, torch", lambda: ours.adam(0.1, dialect="torch").init(count))
    sgd = optax.sgd(0.1, momentum=0.5)
    note("another's", lambda: ours.adam(0.1).update(wave, sgd.init(wave), wave))
    note("no count", lambda: ours.sgd(SCHEDULE, momentum=0.5).update(wave, sgd.init(wave), wave))
    note("a dict", lambda: ours.adam(0.1).update(wave, {"mu": wave}, wave))
    note("torch, optax", lambda: ours.adam(0.1, dialect="torch").update(wave, sgd.init(wave), wave))
    shape = {"a": jax.ShapeDtypeStruct((3,), jnp.float32)}
    note("average of shapes", lambda: ours.adam(0.1, ema=0.5).init(shape))
    key = {"a": jnp.ones(2), "key": jax.random.key(0)}
    note("complex, kernels", lambda: native.apply(wave, wave, native.init(wave)))
    note("key", lambda: ours.adam(0.1).update(key, ours.adam(0.1).init(key), key))
    return found


def modes() -> dict[str, Any]:
    """Under `disable_jit`, `debug_nans` and `checking_leaks`, by each engine."""
    found: dict[str, Any] = {}
    params, grads = tree(0, "float64"), tree(2, "float64")
    bad = jax.tree.map(lambda g: g * jnp.nan, grads)
    for engine in ("xla", "native"):
        for rule in ("sgd momentum", "adamw", "adafactor momentum"):
            name, given = RULES[rule]
            o = getattr(isostep.jax, name)(**given, engine=engine)
            state = o.init(params)
            straight = jax.jit(o.apply)(params, grads, state)
            with jax.disable_jit():
                one = jax.jit(o.apply)(params, grads, state)
            with jax.debug_nans(True):
                two = jax.jit(o.apply)(params, grads, state)
            with jax.checking_leaks():
                three = jax.jit(lambda *args, o=o: o.apply(*args))(params, grads, state)
            found[f"{rule}: {engine}"] = max(worst(straight, end) for end in (one, two, three))
            try:
                with jax.debug_nans(True):
                    jax.jit(o.apply)(params, bad, state)
                found[f"{rule}: {engine}, nan"] = 1.0
            except FloatingPointError:
                found[f"{rule}: {engine}, nan"] = 0.0
    return found


def memory() -> int:
    """Bytes that live on after steps outside of functions, with all that they worked on gone."""
    gc.collect()
    before = sum(x.nbytes for x in jax.live_arrays())
    for n in range(3):
        for engine in ("xla", "native"):
            params = {"a": jnp.ones((50, 50 + n))}
            o = isostep.jax.adamw(jnp.array(0.125), engine=engine)
            o.update(params, o.init(params), params)
            o.apply(params, params, o.init(params))
            del o, params
    gc.collect()
    return sum(x.nbytes for x in jax.live_arrays()) - before


def counts() -> dict[str, Any]:
    """Each schedule goes by the count of its own state, as in optax; none runs over."""
    found: dict[str, Any] = {}
    params = tree(0, "float64")
    for rule in ("adam nesterov", "adadelta", "adafactor momentum"):
        ends: list[Any] = []
        for o in pair(rule):
            state = o.init(params)
            for owner, count in (("ScaleByScheduleState", 3), ("WeightDecaySchedule", 2)):

                def its(path: Any, value: Any, owner: str = owner) -> bool:
                    return getattr(path[-1], "tuple_name", "") == owner

                if optax.tree.get_all_with_path(state, "count", its):
                    state = optax.tree.set(state, its, count=jnp.array(count, jnp.int32))
            ends.append(o.update(params, state, params))
        found[rule] = worst(*ends)
    last = jnp.array(2**31 - 1, jnp.int32)
    o = isostep.jax.adam(0.125)
    full = optax.tree.set(o.init(params), count=last)
    found["last"] = float(optax.tree.get(o.update(params, full)[1], "count") != last)
    return found


LOOKS = (
    signatures,
    dtypes,
    rates,
    leaves,
    shapes,
    explicit,
    edited_states,
    complex_numbers,
    refusals,
    modes,
    memory,
    counts,
)

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    jax.config.update("jax_enable_x64", True)
    print(json.dumps({look.__name__: look() for look in LOOKS}))
