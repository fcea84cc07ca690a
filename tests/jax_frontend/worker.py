"""What is looked at in a process with JAX: `python -m tests.jax_frontend.worker`.

Prints one JSON object. Eight host devices are there, and 64 bits.
"""

from __future__ import annotations

import inspect
import json
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import isostep
import isostep.jax
from isostep import Clip, Group

FACTORIES: dict[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 0.0625, "momentum": 0.75, "nesterov": True},
    "adagrad": {"learning_rate": 0.25, "initial_accumulator_value": 0.25, "eps": 1e-3},
    "rmsprop": {"learning_rate": 0.0625, "decay": 0.75, "momentum": 0.5, "centered": True},
    "adadelta": {"learning_rate": 0.5, "rho": 0.75, "eps": 1e-3, "weight_decay": 0.0625},
    "adam": {"learning_rate": 0.0625, "b1": 0.75, "b2": 0.9375, "eps_root": 1e-4},
    "adamw": {"learning_rate": 0.0625, "b1": 0.75, "b2": 0.9375, "weight_decay": 0.125},
    "adafactor": {
        "learning_rate": 0.25,
        "min_dim_size_to_factor": 4,
        "multiply_by_parameter_scale": False,
        "momentum": 0.5,
    },
}


def tree(seed: int, dtype: str = "float64") -> Any:
    random = np.random.default_rng(seed)
    return {
        "layer": {
            "kernel": jnp.asarray(random.normal(size=(8, 16)), dtype),
            "bias": jnp.asarray(random.normal(size=16), dtype),
        },
        "head": [jnp.asarray(random.normal(size=(16, 4)), dtype), jnp.asarray(0.5, dtype)],
    }


def worst(a: Any, b: Any) -> float:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(
        float(np.max(np.abs(np.float64(x) - np.float64(y)) / (np.abs(np.float64(x)).max() + 1e-30)))
        for x, y in pairs
    )


def train(transformation: Any, steps: int = 7) -> Any:
    params = tree(0)
    state = transformation.init(params)

    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for k in range(steps):
        params, state = step(params, state, tree(100 + k))
    return params


def kernels(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)


# What optax' wrapper would take for numbers and schedules, in its own functions as well.
STATIC = {"min_dim_size_to_factor", "dtype_momentum", "decay_offset"}
WRAPPERS: dict[str, Callable[[Callable[..., Any], dict[str, Any]], Any]] = {
    "chain": lambda make, given: optax.chain(
        optax.clip_by_global_norm(1.0), make(**given), optax.scale(0.5)
    ),
    "masked": lambda make, given: optax.masked(make(**given), kernels),
    "multi_transform": lambda make, given: optax.multi_transform(
        {True: make(**given), False: optax.sgd(0.125)}, kernels
    ),
    "inject_hyperparams": lambda make, given: optax.inject_hyperparams(
        make, static_args=STATIC & inspect.signature(make).parameters.keys()
    )(**given),
    "scheduled": lambda make, given: make(
        **{**given, "learning_rate": optax.cosine_decay_schedule(0.25, 5)}
    ),
    "MultiSteps": lambda make, given: optax.MultiSteps(make(**given), 3),
    "apply_if_finite": lambda make, given: optax.apply_if_finite(make(**given), 2),
}


def wrappers() -> dict[str, float]:
    """Every factory in every wrapper of optax, and optax' own in its place."""
    found: dict[str, float] = {}
    for name, given in FACTORIES.items():
        for wrapper, wrap in WRAPPERS.items():
            ends = [train(wrap(getattr(m, name), given)) for m in (optax, isostep.jax)]
            found[f"{name} {wrapper}"] = worst(*ends)
    return found


def fused() -> dict[str, Any]:
    """`apply` in a scan, donated, is `update` step by step; it is compiled once."""
    found: dict[str, Any] = {}
    for name, given in FACTORIES.items():
        optimizer = getattr(isostep.jax, name)(**given, clip=Clip(global_norm=1.0), ema=0.75)
        params = tree(0)
        step = jax.jit(optimizer.apply, donate_argnums=(0, 2))
        state = optimizer.init(params)
        for k in range(7):
            params, state = step(params, tree(100 + k), state)
        compiled = step._cache_size()
        grads = jax.tree.map(lambda *g: jnp.stack(g), *(tree(100 + k) for k in range(7)))

        def one(carry: Any, g: Any, optimizer: Any = optimizer) -> Any:
            return optimizer.apply(carry[0], g, carry[1]), None

        start = (tree(0), optimizer.init(tree(0)))
        (scanned, kept), _ = jax.jit(lambda c, g, one=one: jax.lax.scan(one, c, g))(start, grads)
        clipped = train(optax.chain(optax.clip_by_global_norm(1.0), getattr(optax, name)(**given)))
        apart = [worst(params, scanned), worst(state.average, kept.average), worst(params, clipped)]
        found[name] = [*apart, compiled]
    return found


def transformations() -> dict[str, Any]:
    """vmap over optimizers, and the gradient of a loss after a step along the learning rate."""
    params = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), tree(0))
    grads = jax.tree.map(lambda x: jnp.stack([x, -x]), tree(1))
    optimizer = isostep.jax.adamw(0.125)
    state = jax.vmap(optimizer.init)(params)
    together, _ = jax.vmap(optimizer.apply)(params, grads, state)
    apart = [
        optimizer.apply(*(jax.tree.map(lambda x, k=k: x[k], t) for t in (params, grads, state)))[0]
        for k in (0, 1)
    ]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *apart)

    def after(rate: Any, module: Any) -> Any:
        made = module.adam(rate)
        kept = made.init(tree(0))
        updates, _ = made.update(tree(1), kept, tree(0))
        new = optax.apply_updates(tree(0), updates)
        return sum(jnp.sum(x * x) for x in jax.tree.leaves(new))

    slopes = [float(jax.grad(after)(0.125, m)) for m in (optax, isostep.jax)]
    return {"vmap": worst(stacked, together), "slopes": slopes}


def sharded() -> dict[str, Any]:
    """On eight devices: the numbers of one, and states that lie as their parameters."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("x", "y"))

    def place(params: Any) -> Any:
        specs = {"layer": {"kernel": ("x", "y"), "bias": ("y",)}, "head": [("y", None), ()]}
        return jax.tree.map(
            lambda p, s: jax.device_put(p, NamedSharding(mesh, PartitionSpec(*s))),
            params,
            specs,
            is_leaf=lambda s: isinstance(s, tuple),
        )

    found: dict[str, Any] = {}
    for name, given in FACTORIES.items():
        optimizer = getattr(isostep.jax, name)(**given, clip=Clip(global_norm=1.0), ema=0.75)
        step = jax.jit(optimizer.apply, donate_argnums=(0, 2))
        ends: list[Any] = []
        for lay in (lambda t: t, place):
            params = lay(tree(0))
            state = optimizer.init(params)
            first = jax.tree.map(lambda a: a.sharding, state)
            for k in range(5):
                params, state = step(params, lay(tree(100 + k)), state)
            ends.append(params)
        same = jax.tree.map(
            lambda a, s: a.sharding.is_equivalent_to(s, a.ndim),
            state._replace(count=None),
            first._replace(count=None),
        )
        specs = {
            slot: str(t["layer"]["kernel"].sharding.spec)
            for slot, t in state.slots.items()
            if t["layer"]["kernel"] is not None
        }
        found[name] = [worst(*ends), all(jax.tree.leaves(same)), specs]
    return found


def options() -> dict[str, Any]:
    """Groups, masks, masters, skipped steps, reports, dialects, states as bytes."""
    params, grads = tree(0), tree(1)
    grouped = isostep.jax.adamw(
        0.0625, weight_decay=0.125, groups=[Group("*/bias", learning_rate=0.25, weight_decay=0.0)]
    )
    labels = {"layer": {"kernel": "rest", "bias": "bias"}, "head": ["rest", "rest"]}
    parts = {
        "rest": optax.adamw(0.0625, weight_decay=0.125),
        "bias": optax.adamw(0.25, weight_decay=0.0),
    }
    found: dict[str, Any] = {
        "groups": worst(train(optax.multi_transform(parts, labels)), train(grouped)),
        "mask": worst(
            *[
                train(m.adamw(0.0625, weight_decay=0.125, mask=kernels))
                for m in (optax, isostep.jax)
            ]
        ),
    }
    low = jax.tree.map(lambda p: p.astype("bfloat16"), params)
    kept = isostep.jax.adamw(1e-4, master_weights=True)
    state, moved, wide = kept.init(low), low, tree(0)
    wide = jax.tree.map(lambda p: p.astype("float32"), low)
    alone = isostep.jax.adamw(1e-4)
    other = alone.init(wide)
    for k in range(20):
        g = tree(100 + k, "bfloat16")
        updates, state = kept.update(g, state, moved)
        moved = optax.apply_updates(moved, updates)
        wide, other = alone.apply(wide, jax.tree.map(lambda x: x.astype("float32"), g), other)
    rounded = jax.tree.map(lambda p: p.astype("bfloat16"), wide)
    found["masters"] = worst(rounded, moved)
    found["dtypes"] = sorted({str(x.dtype) for x in jax.tree.leaves(moved)})

    optimizer = isostep.jax.sgd(0.5, nonfinite="skip", report=True)
    vector = {"w": jnp.array([3.0, 4.0])}
    state = optimizer.init(vector)
    after, state = optimizer.apply(vector, {"w": jnp.array([0.6, 0.8])}, state)
    group = optimizer.report(state).groups[0]
    found["report"] = [group.grad_norm, group.update_norm, group.param_norm]
    updates, skipped = optimizer.update({"w": jnp.array([jnp.nan, 0.0])}, state, after)
    found["skipped"] = [
        updates["w"].tolist(),
        int(skipped.count),
        optimizer.report(skipped).skipped,
    ]

    torch_like = isostep.jax.adam(0.0625, dialect="torch", betas=(0.75, 0.9375))
    native = {f"{k}": np.array(v) for k, v in enumerate(jax.tree.leaves(params))}
    numpy = isostep.Adam(native, lr=0.0625, dialect="torch", betas=(0.75, 0.9375))
    numpy.step({f"{k}": np.array(v) for k, v in enumerate(jax.tree.leaves(grads))})
    stepped, _ = torch_like.apply(params, grads, torch_like.init(params))
    found["torch"] = worst(list(native.values()), jax.tree.leaves(stepped))

    state = grouped.init(params)
    again = pickle.loads(pickle.dumps(jax.tree.map(np.asarray, state)))
    found["pickled"] = jax.tree.structure(again) == jax.tree.structure(state)
    plan = isostep.jax.adafactor(0.1, min_dim_size_to_factor=4).plan(params)
    found["plan"] = [plan.state_bytes, [e.name for e in plan.entries]]
    found["nothing"] = len(jax.tree.leaves(isostep.jax.sgd(0.1).init(params)))
    without = isostep.jax.adam(0.125)
    one, _ = without.update(grads, without.init(params))
    two, _ = without.update(grads, without.init(params), params)
    found["no params"] = worst(one, two)
    return found


def errors() -> dict[str, list[str]]:
    """What wrong calls say."""
    params, grads = tree(0), tree(1)
    found: dict[str, list[str]] = {}

    def note(name: str, call: Callable[[], Any]) -> None:
        try:
            call()
            found[name] = ["", ""]
        except Exception as error:
            found[name] = [type(error).__name__, str(error)]

    adamw = isostep.jax.adamw(0.125)
    state = adamw.init(params)
    note("needs params", lambda: adamw.update(grads, state))
    note("no rate", lambda: isostep.jax.adamw())
    note("misspelt", lambda: isostep.jax.adamw(0.1, beta1=0.9))
    note("range", lambda: isostep.jax.adamw(0.1, b1=1.5))
    note("nonfinite", lambda: isostep.jax.adamw(0.1, nonfinite="raise"))
    note("pattern", lambda: isostep.jax.adamw(0.1, groups=[Group("nothing", lr=1.0)]).init(params))
    note("structure", lambda: adamw.apply(params, {"layer": 1}, state))
    averaged = isostep.jax.adamw(0.125, ema=0.5)
    note("average of integers", lambda: averaged.init({"w": jnp.ones(2, int)}))
    note("torch word", lambda: isostep.jax.adamw(0.1, 0.9, dialect="torch"))
    return found


LOOKS = (wrappers, fused, transformations, sharded, options, errors)

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    jax.config.update("jax_enable_x64", True)
    print(json.dumps({look.__name__: look() for look in LOOKS}))
