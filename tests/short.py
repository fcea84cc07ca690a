"""Every optimizer of a front-end beside the framework's own: what a version of a framework must
pass to be declared as the oldest one. Run by `oldest.py`, in an environment for each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import isostep

STEPS = 3
X, G = np.random.default_rng(0).normal(size=(2, 40, 30)).astype(np.float32)
ROUNDING = 2.0**-24
# Frameworks take 1 - beta2^t in float32, whose rounding it enlarges; nothing else in an update
# loses as much.
OF_UPDATE = ROUNDING / (1 - 0.999)

Steps = Callable[[Any], Any]
RULES = ("SGD", "Adagrad", "RMSprop", "Adadelta", "Adam", "AdamW", "Adafactor")


def assert_follows(mine: Any, theirs: Any, name: str, steps: Steps) -> None:
    found, expected = steps(getattr(mine, name)), steps(getattr(theirs, name))
    moved = np.abs(expected - X).max()
    assert moved > 1e-4
    # And both round the parameter in each step.
    allowed = OF_UPDATE * moved + 2 * STEPS * ROUNDING * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=float(allowed))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_numpy(name: str, dtype: str) -> None:
    found: list[Any] = []
    for engine in ("native", "array"):
        p = {"p": X.astype(dtype)}
        optimizer = isostep.Optimizer(name, p, lr=0.1, engine=engine)
        for _ in range(STEPS):
            optimizer.step({"p": G.astype(dtype)})
        assert optimizer.ran[0].startswith(engine)
        found.append(p["p"].astype(np.float64))
    unit = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11}[dtype]
    np.testing.assert_allclose(*found, rtol=0, atol=64 * unit * float(np.abs(found[0]).max()))


def test_numpy_with_no_machine_code_but_ours(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numba is asked for optimised code, by what it does not promise to keep."""
    from isostep.compile import machine_code, optimised

    monkeypatch.setenv("ISOSTEP_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(machine_code, "_kernels", {})
    before = machine_code.compilations
    isostep.Adafactor({"p": X.copy()}, engine="native").step({"p": G})
    assert machine_code.compilations > before
    assert optimised._asked is optimised.by_target


def test_bfloat16() -> None:
    p = {"p": X.astype(importlib.import_module("ml_dtypes").bfloat16)}
    isostep.SGD(p, lr=0.5, engine="native").step({"p": np.ones_like(p["p"])})
    expected = (X.astype(p["p"].dtype).astype(np.float32) - 0.5).astype(p["p"].dtype)
    np.testing.assert_array_equal(p["p"], expected)


@pytest.mark.parametrize("name", RULES)
def test_torch(name: str) -> None:
    import torch

    import isostep.torch as mine

    def steps(make: Any) -> Any:
        p = torch.nn.Parameter(torch.tensor(X))
        optimizer = make([p], lr=0.1)
        for _ in range(STEPS):
            p.grad = torch.tensor(G)
            optimizer.step()
        again = make([p], lr=0.1)
        again.load_state_dict(optimizer.state_dict())
        again.step()
        return p.detach().numpy()

    assert_follows(mine, torch.optim, name, steps)


@pytest.mark.parametrize("name", map(str.lower, RULES))
@pytest.mark.parametrize("way", ["update", "apply"])
def test_jax(name: str, way: str) -> None:
    import jax
    import optax

    import isostep.jax as mine

    def steps(make: Any) -> Any:
        optimizer = make(0.1)
        p, g = jax.numpy.asarray(X), jax.numpy.asarray(G)
        state = optimizer.init(p)
        step = jax.jit(optimizer.apply) if way == "apply" and make is mine_makes else None
        for _ in range(STEPS):
            if step is not None:
                p, state = step(p, g, state)
            else:
                updates, state = optimizer.update(g, state, p)
                p = optax.apply_updates(p, updates)
        return np.asarray(p)

    mine_makes = getattr(mine, name)
    assert_follows(mine, optax, name, steps)


@pytest.mark.parametrize("name", RULES)
def test_keras(name: str) -> None:
    import keras

    import isostep.keras as mine

    def steps(make: Any) -> Any:
        variable = keras.Variable(X)
        optimizer = make(learning_rate=0.1)
        optimizer.build([variable])
        for _ in range(STEPS):
            optimizer.apply_gradients([(keras.ops.convert_to_tensor(G), variable)])
        return keras.ops.convert_to_numpy(variable)

    assert_follows(mine, keras.optimizers, name, steps)


@pytest.mark.parametrize("name", RULES)
def test_tf_keras(name: str) -> None:
    import tensorflow as tf
    import tf_keras

    import isostep.tf_keras as mine

    def steps(make: Any) -> Any:
        variable = tf.Variable(X)
        optimizer = make(learning_rate=0.1)
        optimizer.build([variable])
        for _ in range(STEPS):
            optimizer.apply_gradients([(tf.constant(G), variable)])
        return variable.numpy()

    assert_follows(mine, tf_keras.optimizers, name, steps)


@pytest.mark.parametrize(
    "name", ["SGD", "Momentum", "Adagrad", "RMSProp", "Adadelta", "Adam", "AdamW"]
)
def test_paddle(name: str) -> None:
    import paddle

    import isostep.paddle as mine

    def steps(make: Any) -> Any:
        p = paddle.create_parameter(
            X.shape, "float32", default_initializer=paddle.nn.initializer.Assign(X)
        )
        optimizer = make(learning_rate=0.1, parameters=[p])
        for _ in range(STEPS):
            (p * paddle.to_tensor(G)).sum().backward()
            optimizer.step()
            optimizer.clear_grad()
        return p.numpy()

    if not hasattr(mine, name):
        pytest.skip(f"isostep.paddle has no {name}")
    assert_follows(mine, paddle.optimizer, name, steps)
