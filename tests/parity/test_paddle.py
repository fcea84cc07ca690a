"""isostep beside `paddle.optimizer`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from isostep import dialects

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
from .paddle_cases import CASES
from .quirks import Quirks

QUIRKS = Quirks("paddle")
# In tests/paddle_frontend: check_sparse.py, check_dynamic.py and check_static.py.
QUIRKS.shown("paddle-adam-decays-no-rows", "paddle-tensor-rate")
POWERS = ("beta1_pow_acc", "beta2_pow_acc")
EXTRA = {"RMSprop": {"momentum", "mean_grad"}, "Adam": {*POWERS}, "AdamW": {*POWERS}}


@pytest.fixture(scope="module")
def theirs(shared: Path) -> Reference:
    return reference("paddle", shared / "paddle.npz")


@pytest.mark.parametrize("case", [c for c in CASES if "float64" in c.dtypes], ids=str)
def test_float64_follows_paddle(case: Case, theirs: Reference):
    assert_float64("paddle", case, theirs, extra=frozenset(EXTRA.get(case.rule, ())))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_is_no_further_from_float64_than_paddle(case: Case, theirs: Reference):
    assert_float32("paddle", case, theirs)


@pytest.mark.parametrize(
    "name", ["momentum", "adagrad", "rmsprop-centered-momentum", "adadelta", "adamw"]
)
def test_what_the_dialect_lists_is_held_in_float32(name: str, theirs: Reference):
    case = next(c for c in CASES if c.name == name)
    assert dialects.get("paddle").spelling(case.framework_class).in_float32
    assert worst(case, run("paddle", case, "float64"), theirs)[0] > 100 * TOLERANCE


@pytest.mark.parametrize("beta", [1, 2])
def test_powers_of_betas_are_one_step_ahead(beta: int, theirs: Reference):
    case = next(c for c in CASES if c.name == "adamw")
    power = theirs["adamw", "float64", "10", "cube", f"beta{beta}_pow_acc"]
    np.testing.assert_allclose(power, case.arguments[f"beta{beta}"] ** 11, rtol=TOLERANCE)


@QUIRKS.shown("paddle-rmsprop-keeps-all-slots")
def test_rmsprop_keeps_slots_that_it_does_not_use(theirs: Reference):
    assert {key[4] for key in theirs if key[0] == "rmsprop"} >= {"momentum", "mean_grad"}
    assert (
        "momentum"
        not in run("paddle", next(c for c in CASES if c.name == "rmsprop"), "float64").states[1][
            "cube"
        ]
    )


@QUIRKS.shown("paddle-clip-by-norm-takes-float32")
def test_clip_by_norm_refuses_float64(theirs: Reference):
    assert not theirs["probe", "clips-float64-by-norm"]


@QUIRKS.shown("paddle-global-norm-per-group")
def test_a_global_norm_is_that_of_a_group(theirs: Reference):
    """Of one group of norm 1 it is 1; of both it would be the root of 2, and they would move by
    its inverse."""
    np.testing.assert_allclose(theirs["probe", "groups-clipped"], 1.0, rtol=1e-6)


@QUIRKS.shown("paddle-rescale-grad-on-gpu-only")
def test_momentum_does_not_rescale_on_the_cpu(theirs: Reference):
    np.testing.assert_allclose(theirs["probe", "momentum-rescaled"], 1.0, rtol=1e-6)


@QUIRKS.shown("paddle-lr-ratio-on-gpu-only")
def test_adamw_refuses_lr_ratio_on_the_cpu(theirs: Reference):
    assert not theirs["probe", "takes-lr-ratio"]


@QUIRKS.shown("paddle-tensor-betas-start-at-defaults")
def test_powers_of_tensors_begin_at_the_defaults(theirs: Reference):
    expected = np.sqrt(1 - 0.999) / (1 - 0.9) * (1 - 0.5) / np.sqrt(1 - 0.75)
    np.testing.assert_allclose(theirs["probe", "tensor-betas"], expected, rtol=1e-4)


@QUIRKS.shown("paddle-sparse-adam-counts-ahead")
def test_the_sparse_adam_is_a_step_ahead(theirs: Reference):
    """At its first step, for any gradient, with 1 - beta^2 in the place of 1 - beta."""
    expected = np.sqrt(1 - 0.9375**2) / (1 - 0.75**2) * (1 - 0.75) / np.sqrt(1 - 0.9375)
    np.testing.assert_allclose(theirs["probe", "sparse-adam"], expected, rtol=1e-5)


def test_defaults_are_those_of_paddle(theirs: Reference):
    assert_defaults("paddle", theirs)


def test_every_quirk_is_shown():
    QUIRKS.assert_all_shown()
