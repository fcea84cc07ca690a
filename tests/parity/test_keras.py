"""isostep beside Keras 3, on each of its backends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from isostep import dialects
from isostep.dialects.keras import KEEPS_OTHER_SUMS
from tests import subprocesses

from .case import TOLERANCE, Average, Case
from .compare import (
    Reference,
    assert_defaults,
    assert_float32,
    assert_float64,
    make,
    reference,
    run,
    worst,
)
from .keras_cases import CASES, EVERYWHERE
from .quirks import Quirks

QUIRKS = Quirks("keras")
BY_NAME = {case.name: case for case in CASES}
EXTRA = {"Adafactor": {"velocity"}}

Backends = Callable[[str], Reference]
RUNS = [("tensorflow", case) for case in CASES]
RUNS += [(backend, case) for backend in ("torch", "jax") for case in EVERYWHERE]

# (backend, case) -> the quirk by which this backend computes in float32 what should be float64.
IN_FLOAT32 = {
    ("torch", "adafactor"): "keras-adafactor-means-in-float32",
    ("jax", "adafactor"): "keras-adafactor-means-in-float32",
    ("torch", "clip-norm-sgd"): "keras-norm-clips-in-float32",
    ("torch", "clip-global-norm-sgd"): "keras-norm-clips-in-float32",
}


@pytest.fixture(scope="module")
def theirs(shared: Path) -> Backends:
    @cache
    def of(backend: str) -> Reference:
        return reference(
            "keras",
            shared / f"keras-{backend}.npz",
            KERAS_BACKEND=backend,
            KERAS_HOME=str(shared),
            JAX_ENABLE_X64="1",
            JAX_PLATFORMS="cpu",
        )

    return of


@pytest.mark.parametrize(("backend", "case"), RUNS, ids=str)
def test_float64_follows_keras(backend: str, case: Case, theirs: Backends):
    assert_float64(
        "keras",
        case,
        theirs(backend),
        extra=frozenset(EXTRA.get(case.rule, ())),
        tolerance=1e-6 if (backend, case.name) in IN_FLOAT32 else None,
    )


@pytest.mark.parametrize(("backend", "case"), RUNS, ids=str)
def test_float32_is_no_further_from_float64_than_keras(backend: str, case: Case, theirs: Backends):
    exact = (backend, case.name) not in IN_FLOAT32
    assert_float32("keras", case, theirs(backend), exact=exact)


@QUIRKS.shown("keras-adafactor-means-in-float32", "keras-norm-clips-in-float32")
@pytest.mark.parametrize(("backend", "name"), IN_FLOAT32)
def test_some_backends_compute_in_float32(backend: str, name: str, theirs: Backends):
    case = BY_NAME[name]
    error, _ = worst(case, run("keras", case, "float64"), theirs(backend))
    assert error > 1000 * TOLERANCE


@QUIRKS.shown("keras-casts-through-float32")
@pytest.mark.parametrize("name", [case.name for case in CASES if case.quirk])
def test_tensorflow_rounds_what_is_cast(name: str, theirs: Backends):
    case = BY_NAME[name]
    error, _ = worst(case, run("keras", case, "float64"), theirs("tensorflow"))
    assert error > 1000 * TOLERANCE


@pytest.mark.parametrize("backend", ["tensorflow", "torch", "jax"])
def test_the_average_starts_after_the_first_step(backend: str, theirs: Backends):
    parameters = {"w": np.array(2.0)}
    case = Case("", "SGD", {"learning_rate": 1.0}, average=Average(0.5, 3))
    optimizer = make("keras", case, parameters)
    found = []
    for _ in range(3):
        optimizer.step({"w": np.array(1.0)})
        found.append(float(parameters["w"]))
    assert found == [1.0, 0.0, -0.25]
    assert found == theirs(backend)["probe", "average"].tolist()


@QUIRKS.shown("keras-adam-powers-in-variable-dtype")
def test_powers_of_betas_lose_digits_in_float32(theirs: Backends):
    case = BY_NAME["adam-slow-betas"]
    ours, errors = run("keras", case, "float32"), []
    for name, arrays in ours.states[10].items():
        start = case.parameters("float64")[name]
        true, their = (
            theirs("tensorflow")[case.name, dtype, "10", name, "param"] - start
            for dtype in ("float64", "float32")
        )
        errors += [[np.abs(x - true).sum() for x in (arrays["param"] - start, their)]]
    our, their = np.sum(errors, axis=0)
    assert our < their / 4


@QUIRKS.shown("keras-adafactor-relative-step-has-no-effect")
def test_relative_step_has_no_effect(theirs: Backends):
    for name in ("vector", "matrix"):
        assert np.array_equal(
            theirs("tensorflow")["adafactor", "float64", "200", name, "param"],
            theirs("tensorflow")["adafactor-not-relative", "float64", "200", name, "param"],
        )


@QUIRKS.shown("keras-adafactor-stores-full-second-moment")
def test_adafactor_keeps_what_its_factors_give(theirs: Backends):
    arrays = run("keras", BY_NAME["adafactor"], "float64").states[200]["cube"]
    row, column = arrays["r"], arrays["c"]
    whole = (row / row.mean(-1, keepdims=True))[..., None] * column[..., None, :]
    kept = theirs("tensorflow")["adafactor", "float64", "200", "cube", "velocity"]
    np.testing.assert_allclose(kept, whole, TOLERANCE)


@QUIRKS.shown("keras-adafactor-decay-in-variable-dtype")
def test_the_decay_rate_of_adafactor_loses_digits_in_float32(theirs: Backends):
    case = BY_NAME["adafactor"]
    ours = run("keras", case, "float32").states[200]["vector"]["velocity"]
    true, their = (
        theirs("tensorflow")["adafactor", dtype, "200", "vector", "velocity"]
        for dtype in ("float64", "float32")
    )
    assert np.abs(ours - true).mean() < np.abs(their - true).mean()


@QUIRKS.shown("keras-learning-rate-in-floatx")
@pytest.mark.parametrize("backend", ["tensorflow", "torch", "jax"])
def test_the_learning_rate_is_held_in_floatx(backend: str, theirs: Backends):
    assert theirs(backend)["probe", "learning-rate"] == -np.float64(np.float32(0.1))


@QUIRKS.shown("keras-decay-before-update")
def test_adafactor_sees_the_decayed_parameter(theirs: Backends):
    case, keras = BY_NAME["adafactor"], dialects.get("keras")
    spelling = replace(keras.spelling("Adafactor"), decay_first=False)
    ours = run(keras.extended(Adafactor=spelling), case, "float64")
    assert worst(case, ours, theirs("tensorflow"))[0] > 1e-6


# One of two variables has no gradient in the second call, which ends the first step of two calls.
ACCUMULATED = """
import json, keras
known = {n: keras.Variable([0.0], dtype="float32") for n in "ab"}
optimizer = keras.optimizers.SGD(1.0, gradient_accumulation_steps=2)
optimizer.build(list(known.values()))
for named in ("ab", "a", "ab", "ab"):
    optimizer.apply([keras.ops.ones(1) for _ in named], [known[n] for n in named])
print(json.dumps([float(known[n][0]) for n in "ab"]))
"""


@QUIRKS.shown("keras-resets-all-sums")
@pytest.mark.parametrize("backend", ["tensorflow", "torch", "jax"])
def test_a_step_of_accumulated_gradients_forgets_all_sums(backend: str):
    kept = backend in KEEPS_OTHER_SUMS
    found = subprocesses.run(ACCUMULATED, warnings="ignore", KERAS_BACKEND=backend)
    assert found == [-2.0, -1.5 if kept else -1.0]


@pytest.mark.parametrize("backend", ["tensorflow", "torch", "jax"])
def test_defaults_are_those_of_keras(backend: str, theirs: Backends):
    assert_defaults("keras", theirs(backend))


def test_every_quirk_is_shown():
    QUIRKS.assert_all_shown()
