"""isostep beside tf_keras."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from isostep import dialects

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
from .quirks import Quirks
from .tf_keras_cases import CASES

QUIRKS = Quirks("tf_keras")
BY_NAME = {case.name: case for case in CASES}
EXTRA = {"SGD": {"m"}, "Adafactor": {"v"}}


@pytest.fixture(scope="module")
def theirs(shared: Path) -> Reference:
    return reference("tf_keras", shared / "tf_keras.npz")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float64_follows_tf_keras(case: Case, theirs: Reference):
    assert_float64("tf_keras", case, theirs, extra=frozenset(EXTRA.get(case.rule, ())))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_is_no_further_from_float64_than_tf_keras(case: Case, theirs: Reference):
    assert_float32("tf_keras", case, theirs)


@pytest.mark.parametrize(
    "name", ["sgd", "adagrad", "rmsprop", "adadelta", "adam", "adamw", "adafactor"]
)
def test_what_the_dialect_lists_is_held_in_float32(name: str, theirs: Reference):
    case = BY_NAME[f"rounded-{name}"]
    assert dialects.get("tf_keras").spelling(case.rule).in_float32
    assert worst(case, run("tf_keras", case, "float64"), theirs)[0] > 100 * TOLERANCE


@QUIRKS.shown("tf_keras-adam-powers-in-variable-dtype")
def test_betas_are_rounded_before_their_powers(theirs: Reference):
    case = BY_NAME["rounded-betas"]
    assert worst(case, run("tf_keras", case, "float64"), theirs)[0] > 1000 * TOLERANCE


def test_the_average_starts_at_the_first_parameter(theirs: Reference):
    parameters = {"w": np.array(2.0)}
    case = Case("", "SGD", {"learning_rate": 1.0}, average=Average(0.5, 3))
    optimizer = make("tf_keras", case, parameters)
    found = []
    for _ in range(3):
        optimizer.step({"w": np.array(1.0)})
        found.append(float(parameters["w"]))
    assert found == [1.0, 0.0, -0.125]
    assert found == theirs["probe", "average"].tolist()


@QUIRKS.shown("tf_keras-sgd-always-keeps-m")
def test_sgd_without_momentum_keeps_a_slot(theirs: Reference):
    case = BY_NAME["sgd"]
    step = case.arguments["learning_rate"] * case.gradients(1, "float64")["cube"]
    np.testing.assert_allclose(theirs["sgd", "float64", "1", "cube", "m"], -step)
    assert run("tf_keras", case, "float64").states[1]["cube"].keys() == {"param"}


@QUIRKS.shown("tf_keras-rmsprop-overwrites-every-100")
def test_rmsprop_overwrites_every_100_steps_by_default(theirs: Reference):
    spelling = dialects.get("tf_keras").spelling("RMSprop")
    assert theirs["probe", "rmsprop-overwrites"] == spelling.average_every == 100


@QUIRKS.shown("tf_keras-adam-config-drops-adaptive-epsilon")
def test_the_config_of_adam_lacks_adaptive_epsilon(theirs: Reference):
    assert not theirs["probe", "adam-config"]


@QUIRKS.shown("tf_keras-adafactor-relative-step-has-no-effect")
def test_relative_step_has_no_effect(theirs: Reference):
    for name in ("vector", "matrix"):
        assert np.array_equal(
            theirs["adafactor", "float64", "200", name, "param"],
            theirs["adafactor-not-relative", "float64", "200", name, "param"],
        )


@QUIRKS.shown("tf_keras-adafactor-stores-full-second-moment")
def test_adafactor_keeps_what_its_factors_give(theirs: Reference):
    arrays = run("tf_keras", BY_NAME["adafactor"], "float64").states[200]["cube"]
    row, column = arrays["r"], arrays["c"]
    whole = (row / row.mean(-1, keepdims=True))[..., None] * column[..., None, :]
    np.testing.assert_allclose(theirs["adafactor", "float64", "200", "cube", "v"], whole, TOLERANCE)


@QUIRKS.shown("tf_keras-adafactor-decay-in-variable-dtype")
def test_the_decay_rate_of_adafactor_loses_digits_in_float32(theirs: Reference):
    case = BY_NAME["adafactor"]
    ours = run("tf_keras", case, "float32").states[200]["vector"]["v"]
    true, their = (theirs["adafactor", d, "200", "vector", "v"] for d in ("float64", "float32"))
    assert np.abs(ours - true).mean() < np.abs(their - true).mean()


@QUIRKS.shown("tf_keras-learning-rate-in-floatx")
def test_the_learning_rate_is_held_in_floatx(theirs: Reference):
    assert theirs["probe", "learning-rate"] == -np.float64(np.float32(0.1))


@QUIRKS.shown("tf_keras-decay-before-update")
def test_adafactor_sees_the_decayed_parameter(theirs: Reference):
    case, tf_keras = BY_NAME["adafactor"], dialects.get("tf_keras")
    spelling = replace(tf_keras.spelling("Adafactor"), decay_first=False)
    ours = run(tf_keras.extended(Adafactor=spelling), case, "float64", rounded=True)
    assert worst(case, ours, theirs)[0] > 1e-6


@QUIRKS.shown("tf_keras-clipvalue-beside-norm-is-ignored")
def test_a_norm_clip_makes_clipvalue_void(theirs: Reference):
    np.testing.assert_allclose(theirs["probe", "clip-value-and-norm"], [-0.6, -0.8], rtol=1e-15)


def test_defaults_are_those_of_tf_keras(theirs: Reference):
    assert_defaults("tf_keras", theirs)


def test_every_quirk_is_shown():
    QUIRKS.assert_all_shown()
