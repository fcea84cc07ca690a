"""The tables of cases leave nothing out: every argument, every clip, every kind of step."""

from __future__ import annotations

import numpy as np
import pytest

from isostep import dialects

from . import keras_cases, optax_cases, paddle_cases, tf_keras_cases, torch_cases
from .case import Case

TABLES: dict[str, list[Case]] = {
    "torch": torch_cases.CASES,
    "keras": keras_cases.CASES,
    "tf_keras": tf_keras_cases.CASES,
    "paddle": paddle_cases.CASES,
    "optax": optax_cases.CASES,
}
CLIPPED = {
    (case.name, name): case
    for name, cases in TABLES.items()
    for case in cases
    if case.clip and case.poison is None
}


def test_every_dialect_has_a_table():
    assert set(TABLES) == set(dialects.names())


@pytest.mark.parametrize("name", TABLES)
def test_names_of_cases_are_unique(name: str):
    assert len({case.name for case in TABLES[name]}) == len(TABLES[name])


FROM_A_LATER_STEP = ("decay_offset",)
"""What a run from its first step cannot have: tests/jax_frontend/worker.py tries it."""


@pytest.mark.parametrize("name", TABLES)
def test_every_argument_is_tried_away_from_its_default(name: str):
    for spelling in dialects.get(name).spellings.values():
        cases = [c for c in TABLES[name] if c.framework_class == spelling.class_name]
        assert cases, spelling.class_name
        for argument, hyperparameters in spelling.arguments.items():
            if argument in FROM_A_LATER_STEP:
                continue
            parts = tuple(spelling.defaults[h] for h in hyperparameters)
            default = parts if len(parts) > 1 else parts[0]
            given = [c.arguments[argument] for c in cases if argument in c.arguments]
            assert any(value != default for value in given), (spelling.class_name, argument)


@pytest.mark.parametrize("name", TABLES)
def test_every_rank_is_tried_with_every_class(name: str):
    for spelling in dialects.get(name).spellings.values():
        ranks = {
            len(shape)
            for case in TABLES[name]
            if case.framework_class == spelling.class_name
            for shape in case.shapes.values()
        }
        assert ranks >= {0, 1, 3}, spelling.class_name


@pytest.mark.parametrize("case", CLIPPED.values(), ids=["-".join(key) for key in CLIPPED])
def test_clips_act_in_some_steps_and_not_in_others(case: Case):
    kind, threshold = case.clip
    acts = set()
    for step in range(1, 201):
        gradients = [g for g in case.gradients(step, "float64").values() if g is not None]
        if kind == "value":
            sizes = np.concatenate([np.abs(g).ravel() for g in gradients])
        else:
            sizes = np.array([np.linalg.norm(g) for g in gradients])
        if kind == "global_norm":
            sizes = np.linalg.norm(sizes, keepdims=True)
        acts |= set((sizes > threshold).tolist())
    assert acts == {False, True}
