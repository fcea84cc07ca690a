"""Who runs: rules by name, with their hyperparameters, a user's own among them."""

from __future__ import annotations

import numpy as np
import pytest

from isostep import dialects, rules
from isostep.cli.race.contestants import (
    Entry,
    contestant,
    contestants,
    default_rate,
    parse_entries,
    registered,
)
from isostep.cli.race.errors import RaceError


def test_names_and_hyperparameters_are_read() -> None:
    assert parse_entries("AdamW, SGD(momentum=0.9, nesterov=True),Adam(betas=(0.8, 0.9))") == [
        Entry("AdamW"),
        Entry("SGD", {"momentum": 0.9, "nesterov": True}),
        Entry("Adam", {"betas": (0.8, 0.9)}),
    ]
    assert parse_entries("SGD( momentum = 0.9 )")[0].label == "SGD(momentum=0.9)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no optimizer is entered"),
        ("AdamW SGD", "cannot read the optimizers 'AdamW SGD'"),
        ("AdamW(", "cannot read"),
        ("AdamW(0.9)", "cannot read"),
        ("AdamW(**x)", "cannot read"),
        ("SGD(momentum=f())", "cannot read"),
        ("a.b", "cannot read"),
        ("] + [1", "cannot read"),
        ("SGD,AdamW,SGD", "SGD is entered twice"),
    ],
)
def test_what_cannot_be_read_is_told_so(text: str, message: str) -> None:
    with pytest.raises(RaceError, match=message):
        parse_entries(text)


@pytest.mark.parametrize(
    ("entry", "dialect", "message"),
    [
        (Entry("AdmW"), "torch", "AdmW: .*did you mean 'AdamW'"),
        (Entry("SGD"), "toch", "did you mean 'torch'"),
        (Entry("SGD", {"momentun": 0.9}), "torch", "did you mean 'momentum'"),
        (Entry("AdamW", {"beta1": 1.5}), "torch", r"beta1=1.5 is out of range"),
        (Entry("SGD", {"lr": 0.1}), "torch", "the race itself chooses lr"),
        (Entry("Adafactor"), "paddle", "Paddle has no Adafactor"),
    ],
)
def test_what_cannot_run_is_told_so_before_the_race(
    entry: Entry, dialect: str, message: str
) -> None:
    with pytest.raises(RaceError, match=message):
        contestant(entry, dialect)


@pytest.mark.parametrize("dialect", dialects.names())
def test_every_registered_rule_of_a_dialect_runs_from_its_default_rate(dialect: str) -> None:
    entries = registered(dialect)
    assert {entry.rule for entry in entries} == set(rules.names()) - set(
        dialects.get(dialect).absent
    )
    for entry in entries:
        runner = contestant(entry, dialect)
        assert runner.centre == default_rate(rules.get(entry.rule), dialect) > 0
        params = {"w": np.ones((3, 4), np.float32)}
        optimizer = runner.make(params, runner.centre)
        optimizer.step({"w": np.ones((3, 4), np.float32)})
        assert (params["w"] < 1).all()


def test_entries_that_differ_have_keys_that_differ() -> None:
    entered = contestants(parse_entries("SGD,SGD(momentum=0.9),AdamW"), "torch")
    entered["AdamW in Keras"] = contestant(Entry("AdamW"), "keras")
    assert len({repr(runner.identity) for runner in entered.values()}) == len(entered) == 4
