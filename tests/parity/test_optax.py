"""isostep beside optax."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from isostep import dialects
from isostep.errors import HyperparameterError
from isostep.numpy import Optimizer

from .case import TOLERANCE, Case
from .compare import (
    Reference,
    assert_defaults,
    assert_float32,
    assert_float64,
    reference,
    run,
    worst,
)
from .optax_cases import CASES
from .quirks import Quirks

QUIRKS = Quirks("optax")
BY_NAME = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def theirs(shared: Path) -> Reference:
    return reference("optax", shared / "optax.npz", JAX_PLATFORMS="cpu")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float64_follows_optax(case: Case, theirs: Reference):
    assert_float64("optax", case, theirs)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_is_no_further_from_float64_than_optax(case: Case, theirs: Reference):
    assert_float32("optax", case, theirs)


@QUIRKS.shown("optax-adagrad-zero-where-empty")
def test_adagrad_leaves_elements_without_gradient(theirs: Reference):
    case = BY_NAME["adagrad-zero-where-empty"]
    for name, start in case.parameters("float64").items():
        if start.size > 1:
            total = theirs[case.name, "float64", "200", name, "sum_of_squares"].flat[1]
            parameter = theirs[case.name, "float64", "200", name, "param"].flat[1]
            assert (total, parameter) == (0.0, start.flat[1])


@QUIRKS.shown("optax-adadelta-climbs-without-learning-rate")
def test_adadelta_needs_a_learning_rate(theirs: Reference):
    assert theirs["probe", "adadelta-default-update"] > 0  # along a gradient of one
    with pytest.raises(HyperparameterError, match="learning_rate"):
        Optimizer("Adadelta", {"w": np.ones(1)}, dialect="optax")


@QUIRKS.shown("optax-adam-powers-in-float32")
def test_powers_of_betas_lose_digits_in_float32(theirs: Reference):
    case = BY_NAME["adam-slow-betas"]
    ours, errors = run("optax", case, "float32"), []
    for name, arrays in ours.states[1].items():
        start = case.parameters("float64")[name]
        true, their = (
            theirs[case.name, dtype, "1", name, "param"] - start for dtype in ("float64", "float32")
        )
        errors += [[np.abs(x - true).sum() for x in (arrays["param"] - start, their)]]
    our, their = np.sum(errors, axis=0)
    assert our < their / 10


@QUIRKS.shown("optax-amsgrad-maximum-of-corrected")
def test_the_maximum_is_over_corrected_second_moments(theirs: Reference):
    raw, largest = (theirs["amsgrad", "float64", "1", "cube", slot] for slot in ("nu", "nu_max"))
    np.testing.assert_allclose(largest, raw / (1 - BY_NAME["amsgrad"].arguments["b2"]))


@QUIRKS.shown("optax-adafactor-decay-rate-in-float32")
def test_the_decay_rate_of_adafactor_is_a_float32(theirs: Reference):
    case = BY_NAME["adafactor"]
    assert worst(case, run("optax", case, "float64"), theirs)[0] > 1000 * TOLERANCE


@QUIRKS.shown("optax-adafactor-momentum-in-float32")
def test_the_momentum_of_adafactor_is_a_float32(theirs: Reference):
    assert theirs["probe", "adafactor-momentum"].dtype == np.float32


@QUIRKS.shown("optax-adafactor-decay-without-learning-rate")
def test_decay_of_adafactor_is_not_times_the_learning_rate(theirs: Reference):
    case, optax = BY_NAME["adafactor-exact-decay-rate"], dialects.get("optax")
    spelling = replace(optax.spelling("Adafactor"), decay_times_lr=True)
    ours = run(optax.extended(Adafactor=spelling), case, "float64")
    assert worst(case, ours, theirs)[0] > 1e-6


def test_defaults_are_those_of_optax(theirs: Reference):
    # See the quirk optax-adadelta-climbs-without-learning-rate.
    assert_defaults("optax", theirs, but={("adadelta", "learning_rate")})


def test_every_quirk_is_shown():
    QUIRKS.assert_all_shown()
