"""isostep.jax with the libraries around JAX: `python -m tests.jax_frontend.libraries_worker`.

Prints one JSON object.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx

import isostep.jax
from isostep import Clip, Group
from tests.jax_frontend.worker import tree, worst

X = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4)))
STEPS = 5


class Layers(nnx.Module):
    """Two layers, the second without a name of its own."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        inner = {"param_dtype": jnp.float64, "rngs": rngs}
        self.first = nnx.Linear(4, 8, **inner)
        self.rest = nnx.List([nnx.Linear(8, 2, **inner)])

    def __call__(self, x: Any) -> Any:
        return self.rest[0](jnp.tanh(self.first(x)))


class Tower(eqx.Module):
    """Layers, and what is no array or not trained."""

    layers: list[eqx.nn.Linear]
    offset: jax.Array
    activation: Any
    steps: int = 3

    def __init__(self) -> None:
        first, second = jax.random.split(jax.random.key(0))
        self.layers = [eqx.nn.Linear(4, 8, key=first), eqx.nn.Linear(8, 2, key=second)]
        self.offset = jnp.arange(2)
        self.activation = jnp.tanh

    def __call__(self, x: Any) -> Any:
        return self.layers[1](self.activation(self.layers[0](x))) + self.offset


def flax() -> dict[str, Any]:
    """`nnx.Optimizer` with groups by pattern: the end that optax' labels give."""
    groups = [Group("*/bias", learning_rate=0.25, weight_decay=0.0), Group("first/*", b1=0.5)]
    ours = isostep.jax.adamw(0.0625, weight_decay=0.125, groups=groups)
    parts = {
        "bias": optax.adamw(0.25, weight_decay=0.0),
        "first": optax.adamw(0.0625, b1=0.5, weight_decay=0.125),
        "rest": optax.adamw(0.0625, weight_decay=0.125),
    }

    def labels(params: Any) -> Any:
        def label(path: Any, _: Any) -> str:
            names = [str(key) for key in path]
            if any("bias" in name for name in names):
                return "bias"
            return "first" if any("first" in name for name in names) else "rest"

        return jax.tree_util.tree_map_with_path(label, params)

    theirs = optax.multi_transform(parts, labels)
    ends: list[Any] = []
    for transformation in (theirs, ours):
        model = Layers(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)

        @nnx.jit
        def step(model: Any, optimizer: Any) -> None:
            grads = nnx.grad(lambda model: jnp.mean(model(X) ** 2))(model)
            optimizer.update(model, grads)

        for _ in range(STEPS):
            step(model, optimizer)
        ends.append(nnx.state(model, nnx.Param))

    state = nnx.state(Layers(nnx.Rngs(0)), nnx.Param)
    names = [entry.name for entry in ours.plan(state).entries]
    kept = ours.init(state)
    for _ in range(STEPS):
        _, state, kept = _fused(ours, state, kept)
    return {"apart": worst(*ends), "names": names, "fused": worst(ends[0], state)}


def _fused(optimizer: Any, state: Any, kept: Any) -> Any:
    graph, _, rest = nnx.split(Layers(nnx.Rngs(0)), nnx.Param, ...)

    @jax.jit
    def step(state: Any, kept: Any) -> Any:
        def loss(state: Any) -> Any:
            return jnp.mean(nnx.merge(graph, state, rest)(X) ** 2)

        value, grads = jax.value_and_grad(loss)(state)
        return value, *optimizer.apply(state, grads, kept)

    return step(state, kept)


def equinox() -> dict[str, Any]:
    """A module of which only the arrays are trained, by updates and in the fused form."""
    groups = [Group("*/bias", weight_decay=0.0)]
    found: dict[str, Any] = {}
    for engine in ("xla", "native"):
        ours = isostep.jax.adamw(0.0625, weight_decay=0.125, groups=groups, engine=engine)

        def mask(params: Any) -> Any:
            return jax.tree.map(lambda p: p.ndim > 1, params)

        theirs = optax.adamw(0.0625, weight_decay=0.125, mask=mask)
        trained, static = eqx.partition(Tower(), eqx.is_inexact_array)
        grad = eqx.filter_grad(lambda model: jnp.mean(jax.vmap(model)(X) ** 2))
        ends: list[Any] = []
        for transformation in (theirs, ours):
            model = Tower()
            state = transformation.init(eqx.filter(model, eqx.is_inexact_array))
            for _ in range(STEPS):
                params = eqx.filter(model, eqx.is_inexact_array)
                updates, state = transformation.update(grad(model), state, params)
                model = eqx.apply_updates(model, updates)
            ends.append(eqx.filter(model, eqx.is_inexact_array))
        state = ours.init(trained)
        step = eqx.filter_jit(ours.apply)
        params = trained
        for _ in range(STEPS):
            params, state = step(params, grad(eqx.combine(params, static)), state)
        whole = eqx.combine(params, static)
        found[engine] = [worst(*ends), worst(ends[0], params), whole.offset.tolist(), whole.steps]
    found["names"] = [entry.name for entry in ours.plan(trained).entries]
    return found


def orbax() -> dict[str, Any]:
    """Training that is saved and goes on from the file, by a new optimizer: the same bits."""
    found: dict[str, Any] = {}
    for name, given in (("adamw", {}), ("adafactor", {"min_dim_size_to_factor": 4})):
        for engine in ("xla", "native"):

            def make(name: str = name, given: Any = given, engine: str = engine) -> Any:
                options = {"clip": Clip(global_norm=1.0), "ema": 0.75, "engine": engine}
                rate = optax.cosine_decay_schedule(0.25, 2 * STEPS)
                return getattr(isostep.jax, name)(rate, **given, **options)

            def walk(kept: Any, first: int, make: Any = make) -> Any:
                step = jax.jit(make().apply)
                for k in range(first, first + STEPS):
                    kept = step(kept[0], tree(100 + k), kept[1])
                return kept

            half = walk((tree(0), make().init(tree(0))), 0)
            straight = walk(half, STEPS)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "checkpoint"
                with ocp.StandardCheckpointer() as checkpointer:
                    checkpointer.save(path, half)
                    checkpointer.wait_until_finished()
                    fresh = (tree(0), make().init(tree(0)))
                    loaded = checkpointer.restore(path, jax.eval_shape(lambda x: x, fresh))
            resumed = walk(loaded, STEPS)
            same = jax.tree.map(
                lambda a, b: a.dtype == b.dtype and bool((a == b).all()), straight, resumed
            )
            found[f"{name} {engine}"] = [all(jax.tree.leaves(same)), int(resumed[1].count)]
    return found


LOOKS = (flax, equinox, orbax)

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    jax.config.update("jax_enable_x64", True)
    print(json.dumps({look.__name__: look() for look in LOOKS}))
