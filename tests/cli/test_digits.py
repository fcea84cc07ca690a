"""The default task: right gradients, a fixed split, and starts and batches made by the seed."""

from __future__ import annotations

import numpy as np
import pytest

from isostep.cli.race.digits import Digits


def test_gradients_equal_finite_differences() -> None:
    task = Digits(hidden=(12, 7), dtype="float64")
    params = task.initial_parameters(0)
    random = np.random.default_rng(0)
    for name, array in params.items():
        if name.endswith("bias"):  # zero biases would leave their influence untested
            array += random.normal(scale=0.1, size=array.shape)
    batch = next(task.batches(0, 1))
    _, gradients = task.loss_and_gradients(params, batch)
    assert gradients.keys() == params.keys()
    # Central differences err by h^2 f'''/6 + eps |f| / h, smallest near h = eps^(1/3).
    h = np.finfo(np.float64).eps ** (1 / 3)
    for name, array in params.items():
        assert gradients[name].shape == array.shape
        flat, exact = array.reshape(-1), gradients[name].reshape(-1)
        for index in random.choice(flat.size, size=min(20, flat.size), replace=False):
            kept = flat[index]
            flat[index] = kept + h
            above, _ = task.loss_and_gradients(params, batch)
            flat[index] = kept - h
            below, _ = task.loss_and_gradients(params, batch)
            flat[index] = kept
            assert (above - below) / (2 * h) == pytest.approx(exact[index], abs=100 * h * h)


def test_parameters_and_gradients_are_float32() -> None:
    task = Digits()
    params = task.initial_parameters(0)
    _, gradients = task.loss_and_gradients(params, next(task.batches(0, 1)))
    assert {array.dtype for array in [*params.values(), *gradients.values()]} == {
        np.dtype(np.float32)
    }


def test_gradients_leave_parameters_alone() -> None:
    task = Digits()
    params = task.initial_parameters(0)
    before = {name: array.copy() for name, array in params.items()}
    task.loss_and_gradients(params, next(task.batches(0, 1)))
    task.validate(params)
    for name, array in params.items():
        np.testing.assert_array_equal(array, before[name])


def test_split_is_fixed_disjoint_and_standardised_by_the_training_images() -> None:
    train, validation = Digits(dtype="float64").split
    again = Digits(dtype="float64").split
    np.testing.assert_array_equal(train.pixels, again.train.pixels)
    assert (len(train.labels), len(validation.labels)) == (1437, 360)
    np.testing.assert_allclose(train.pixels.mean(axis=0), 0, atol=1e-12)
    deviations = train.pixels.std(axis=0)
    np.testing.assert_allclose(deviations[deviations > 0], 1)
    seen = {row.tobytes() for row in train.pixels}
    assert not any(row.tobytes() in seen for row in validation.pixels)
    for part in (train, validation):  # by class: every digit has its share
        assert np.bincount(part.labels, minlength=10).min() > 0.09 * len(part.labels)


def test_a_seed_makes_the_start_and_the_batches() -> None:
    def numbers(seed: int) -> bytes:
        task = Digits()
        start = b"".join(array.tobytes() for array in task.initial_parameters(seed).values())
        return start + b"".join(batch.pixels.tobytes() for batch in task.batches(seed, 50))

    assert numbers(1) == numbers(1)
    assert numbers(1) != numbers(2)


def test_a_sweep_shows_no_image_twice() -> None:
    task = Digits(batch_size=100)
    batches = list(task.batches(0, 14))
    shown = np.concatenate([batch.pixels for batch in batches])
    # 14 sweeps' worth of equal images would repeat; distinct images are distinct rows here.
    assert len(np.unique(shown, axis=0)) == len(shown) == 1400


def test_chance_is_where_the_start_is() -> None:
    task = Digits()
    assert task.validate(task.initial_parameters(0))["accuracy"] < 0.3
