"""What is looked at of the native engine: `python -m tests.jax_frontend.native_worker`.

Prints one JSON object. Eight host devices are there, and 64 bits.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import isostep.jax
from isostep import Clip, Group
from isostep.jax import native
from isostep.jax.forms import Forms
from isostep.jax.trees import Form
from tests.jax_frontend.worker import FACTORIES, kernels, tree, worst

STEPS = 4
CALL = f'custom_call_target="{native.TARGET}"'
GROUPS = [Group("*/bias", learning_rate=0.25)]
# Every two of the options meet in one of these.
OPTIONS: dict[str, dict[str, Any]] = {
    "bare": {},
    "clip, ema, report": {"clip": Clip(global_norm=1.0), "ema": 0.75, "report": True},
    "clip, groups, skip": {"clip": Clip(norm=0.5), "groups": GROUPS, "nonfinite": "skip"},
    "ema, skip, report, mask": {
        "ema": 0.75,
        "nonfinite": "skip",
        "report": True,
        "groups": GROUPS,
        "mask": kernels,
    },
}
MASKED = ("adamw", "adafactor")
# Else its average is stored in float32, where the engines may round to either side.
WIDE: dict[str, dict[str, Any]] = {"adafactor": {"dtype_momentum": "float64"}}


def made(name: str, engine: str, **options: Any) -> Any:
    mask = options.pop("mask", None)
    if mask is not None and name in MASKED:
        options["mask" if name == "adamw" else "weight_decay_mask"] = mask
    return getattr(isostep.jax, name)(**FACTORIES[name], **options, engine=engine)


def ran(step: Any, *args: Any) -> str:
    """The engine in the compiled program."""
    return "native" if CALL in step.lower(*args).compile().as_text() else "xla"


def run(optimizer: Any, dtype: str, grads: Callable[[int], Any]) -> tuple[Any, str]:
    """Parameters and state after some steps, and what took them."""
    params = tree(0, dtype)
    state = optimizer.init(params)
    step = jax.jit(optimizer.apply, donate_argnums=(0, 2))
    engine = ran(step, params, grads(0), state)
    for k in range(STEPS):
        params, state = step(params, grads(k), state)
    return (params, state), engine


def pair(name: str, dtype: str, options: dict[str, Any], grads: Any = None) -> list[Any]:
    """How far the states of both engines are apart, what they were, whether dtypes are the same,
    and how far the parameters are apart."""
    grads = grads or (lambda k: tree(100 + k, dtype))
    options = options | WIDE.get(name, {}) if dtype == "float64" else options
    ours, engine = run(made(name, "native", **options), dtype, grads)
    theirs, other = run(made(name, "xla", **options), dtype, grads)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), ours, theirs)
    return [
        worst(theirs[1], ours[1]),
        engine,
        other,
        all(jax.tree.leaves(same)),
        worst(theirs[0], ours[0]),
    ]


def options() -> dict[str, Any]:
    """Every rule with every option, in float64."""
    return {
        f"{name}: {title}": pair(name, "float64", given)
        for name in FACTORIES
        for title, given in OPTIONS.items()
    }


def dtypes() -> dict[str, Any]:
    """Every rule in float32, an elementwise and a factored one in smaller dtypes with masters."""
    found: dict[str, Any] = {}
    for name in FACTORIES:
        for dtype in ("float32", "bfloat16", "float16") if name in MASKED else ("float32",):
            given: dict[str, Any] = {"clip": Clip(global_norm=1.0)}
            if dtype != "float32":
                given |= {"master_weights": True, "state_dtype": "float32"}
            found[f"{name} {dtype}"] = [*pair(name, dtype, given), operations(name, given)]
    return found


def operations(name: str, given: dict[str, Any]) -> int:
    """How often the steps of `run` round, at most: the nodes of a step, over all steps."""
    optimizer = made(name, "native", **given)
    params = tree(0, "float32")
    form, _ = Form.of(params)
    function = Forms(optimizer.steps._made).prepared(form, (True,) * 4, form.dtypes).function
    tasks = function.tasks(dict.fromkeys(range(4), jnp.zeros(())))
    return STEPS * max(sum(len(p.nodes) for p in task.schedule.passes) for task in tasks)


def gradients() -> dict[str, Any]:
    """Gradients that are missing, not finite, or of another dtype."""

    def missing(k: int) -> Any:
        grads = tree(100 + k)
        return grads | {"head": [None, grads["head"][1]]}

    def bad(k: int) -> Any:
        grads = tree(100 + k)
        return grads | {"head": [grads["head"][0] * (np.nan if k == 1 else 1.0), grads["head"][1]]}

    def low(k: int) -> Any:
        return tree(100 + k, "bfloat16")

    found: dict[str, Any] = {}
    for name in ("adamw", "adafactor"):
        found[f"{name} missing"] = pair(name, "float64", {"ema": 0.75, "report": True}, missing)
        found[f"{name} low"] = pair(name, "float64", {}, low)
        found[f"{name} bad"] = pair(name, "float64", {"nonfinite": "skip", "ema": 0.75}, bad)
    optimizer = made("adamw", "native", nonfinite="skip", report=True, clip=Clip(global_norm=1.0))
    params = tree(0)
    state = optimizer.init(params)
    after = jax.jit(optimizer.apply)(params, bad(1), state)
    same = jax.tree.map(
        lambda a, b: bool((a == b).all()), after[0:1] + after[1][:2], (params, *state[:2])
    )
    report = optimizer.report(after[1])
    found["untouched"] = [
        all(jax.tree.leaves(same)),
        int(after[1].count),
        report.skipped,
        sum(g.nonfinite for g in report.groups),
    ]
    return found


def in_place() -> dict[str, Any]:
    """With donation everything stays where it lies; without, nothing that was given is changed."""
    found: dict[str, Any] = {}
    for name in FACTORIES:
        optimizer = made(name, "native", clip=Clip(global_norm=1.0), ema=0.75)
        params, grads = tree(0), tree(1)
        state = optimizer.init(params)
        kept = jax.tree.map(np.array, (params, state, grads))
        jax.jit(optimizer.apply)(params, grads, state)
        same = jax.tree.map(lambda a, b: bool((a == b).all()), kept, (params, state, grads))
        step = jax.jit(optimizer.apply, donate_argnums=(0, 2))
        text = step.lower(params, grads, state).compile().as_text()

        def places(params: Any, state: Any) -> list[int]:
            arrays = jax.tree.leaves((params, state._replace(count=None)))
            return [a.unsafe_buffer_pointer() for a in arrays]

        # What JAX got of NumPy without a copy is not its own, and cannot be donated.
        params, state = step(params, grads, state)
        before = places(params, state)
        params, state = step(params, grads, state)
        copies = sum(" copy(" in line for line in text.splitlines())
        found[name] = [all(jax.tree.leaves(same)), before == places(params, state), copies]
    return found


def transformations() -> dict[str, Any]:
    """scan, vmap, derivatives and abstract evaluation, each beside the array code."""
    found: dict[str, Any] = {}
    optimizer, other = (made("adamw", e, clip=Clip(global_norm=1.0)) for e in ("native", "xla"))
    params, grads = tree(0), tree(1)
    state = optimizer.init(params)

    stacked = jax.tree.map(lambda *g: jnp.stack(g), *(tree(100 + k) for k in range(STEPS)))

    def scanned(optimizer: Any, carry: Any, grads: Any) -> Any:
        def one(carry: Any, g: Any) -> Any:
            return optimizer.apply(carry[0], g, carry[1]), None

        return jax.lax.scan(one, carry, grads)[0]

    scans = [jax.jit(partial(scanned, o)) for o in (optimizer, other)]
    ends = [scan((params, state), stacked) for scan in scans]
    found["scan"] = [worst(*ends), ran(scans[0], (params, state), stacked)]

    many = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), (params, grads))
    states = jax.vmap(optimizer.init)(many[0])
    found["vmap"] = worst(*(jax.vmap(o.apply)(*many, states) for o in (optimizer, other)))
    part = [jax.vmap(o.apply, (None, 0, None))(params, many[1], state) for o in (optimizer, other)]
    found["vmap in part"] = worst(*part)

    def loss(engine: str, rate: Any, params: Any, grads: Any) -> Any:
        made = isostep.jax.adam(rate, engine=engine)
        state = made.init(params)
        for _ in range(2):
            params, state = made.apply(params, grads, state)
        return sum(jnp.sum(x * x) for x in jax.tree.leaves(params))

    for how in (jax.grad, jax.jacfwd):
        slopes = [
            how(partial(loss, e), argnums=(0, 2))(0.125, params, grads) for e in ("native", "xla")
        ]
        found[how.__name__] = worst(*slopes)
    shapes = jax.eval_shape(optimizer.apply, params, grads, state)
    found["eval_shape"] = shapes == jax.eval_shape(other.apply, params, grads, state)
    sizes = [native._compiled.cache_info().currsize]
    for _ in range(2):
        params, state = optimizer.apply(params, grads, state)
        sizes.append(native._compiled.cache_info().currsize)
    found["without jit"] = [
        worst(params, ends_of(other, grads)),
        sizes[2] - sizes[1],
    ]
    wrapped = optax.inject_hyperparams(partial(isostep.jax.adam, engine="native"))(0.125)
    plain = optax.inject_hyperparams(optax.adam)(0.125)
    found["injected"] = worst(*(updated(w, grads) for w in (plain, wrapped)))
    return found


def ends_of(optimizer: Any, grads: Any) -> Any:
    params = tree(0)
    state = optimizer.init(params)
    for _ in range(2):
        params, state = optimizer.apply(params, grads, state)
    return params


def updated(transformation: Any, grads: Any) -> Any:
    params = tree(0)
    updates, _ = transformation.update(grads, transformation.init(params), params)
    return updates


def chosen() -> dict[str, Any]:
    """What `"auto"` takes, and what several devices get."""
    found: dict[str, Any] = {}
    for title, shape in (("small", (8, 16)), ("large", (256, 256))):
        params = {"w": jnp.ones(shape)}
        optimizer = isostep.jax.adamw(0.125)
        step = jax.jit(optimizer.apply)
        found[title] = ran(step, params, params, optimizer.init(params))
        found[f"{title} plan"] = optimizer.plan(params).entries[0].kernel.split(",")[0]

    mesh = Mesh(np.array(jax.devices()), ("x",))
    wide = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(512, 256)))}
    optimizer = isostep.jax.adamw(0.125, clip=Clip(global_norm=1.0))
    ends: list[Any] = []
    for lay in (lambda x: x, lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec("x")))):
        params = {"w": lay(wide["w"])}
        state = optimizer.init(params)
        step = jax.jit(optimizer.apply)
        ends.append([step(params, params, state), ran(step, params, params, state)])
    found["devices"] = [worst(ends[0][0], ends[1][0]), ends[0][1], ends[1][1]]
    second = jax.device_put(wide, jax.devices()[1])
    on_second, _ = jax.jit(optimizer.apply)(second, second, optimizer.init(second))
    found["second device"] = [worst(ends[0][0][0], on_second), str(on_second["w"].devices())]

    alone = isostep.jax.adamw(0.125)
    exported = jax.export.export(jax.jit(alone.apply))(wide, wide, alone.init(wide))
    found["exported"] = native.TARGET in exported.mlir_module()
    return found


def threads() -> bool:
    """One program and two others, each by two threads at a time, do what they do alone."""
    optimizers = [made(name, "native", ema=0.75) for name in ("adamw", "adafactor")]
    steps = [jax.jit(o.apply) for o in optimizers]
    starts = [[tree(k), o.init(tree(k))] for o in optimizers for k in range(2)]

    def walk(number: int) -> Any:
        (params, state), step = starts[number], steps[number // 2]
        for k in range(30):
            params, state = step(params, tree(100 + k), state)
        return jax.block_until_ready(params)

    alone = [walk(n) for n in range(4)]
    found: list[Any] = [None] * 4

    def note(number: int) -> None:
        found[number] = walk(number)

    crowd = [threading.Thread(target=note, args=(n,)) for n in range(4)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    return all(worst(a, b) == 0.0 for a, b in zip(alone, found, strict=True))


def errors() -> dict[str, list[str]]:
    """What wrong calls say, and that the process goes on after an error inside of XLA."""
    params, grads = tree(0), tree(1)
    found: dict[str, list[str]] = {}

    def note(name: str, call: Callable[[], Any]) -> None:
        try:
            jax.block_until_ready(call())
            found[name] = ["", ""]
        except Exception as error:
            found[name] = [type(error).__name__, str(error)]

    adamw = isostep.jax.adamw(0.125, engine="native")
    state = adamw.init(params)
    step = jax.jit(adamw.apply)
    note("engine", lambda: isostep.jax.adamw(0.1, engine="numba"))
    low = jax.tree.map(lambda x: x.astype("float32") if x.dtype == "float64" else x, state)
    note("dtype", lambda: step(params, grads, low))
    note("shape", lambda: step(params, grads | {"head": [grads["head"][0][:1], 0.0]}, state))
    mesh = Mesh(np.array(jax.devices()), ("x",))
    spread = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec())), params)
    note("devices", lambda: step(spread, spread, adamw.init(spread)))
    note("export", lambda: jax.export.export(step)(params, grads, state))
    note("nothing", lambda: step({}, {}, adamw.init({})))

    failing = isostep.jax.sgd(0.25, engine="native")
    vector = {"w": jnp.ones(3)}
    program = jax.jit(failing.apply)
    program(vector, vector, failing.init(vector))
    call = native.Kernels.__call__
    native.Kernels.__call__ = lambda *_: 1 / 0
    note("inside", lambda: program(vector, vector, failing.init(vector)))
    native.Kernels.__call__ = call
    after, _ = program(vector, vector, failing.init(vector))
    found["after"] = [str(after["w"].tolist()), ""]
    return found


def denormals() -> dict[str, float]:
    """First steps of Adam over their rate, where XLA's threads flush the squares to zero."""
    found: dict[str, float] = {}
    for eps, size in ((1e-20, 1e-18), (0.0, 1e-20), (1e-8, 1e-20)):
        adam = isostep.jax.adam(0.5, eps=eps, engine="native")
        params, grads = {"w": jnp.ones(5, "float32")}, {"w": jnp.full(5, size, "float32")}
        after, _ = jax.jit(adam.apply)(params, grads, adam.init(params))
        found[str(eps)] = float((1 - after["w"][0]) / 0.5)
    return found


LOOKS = (denormals, options, dtypes, gradients, in_place, transformations, chosen, threads, errors)

if __name__ == "__main__":
    import sys

    warnings.simplefilter("ignore")
    jax.config.update("jax_enable_x64", True)
    wanted = sys.argv[1:] or [look.__name__ for look in LOOKS]
    print(json.dumps({look.__name__: look() for look in LOOKS if look.__name__ in wanted}))
