"""The standings as text, as JSON, as a picture; the same numbers on each."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from isostep.cli.race.colours import PALETTE, colours_of
from isostep.cli.race.contest import Budget
from isostep.cli.race.curves import band_of, log_ticks, loss_range, sensitivity_of
from isostep.cli.race.live import LiveProgress, PlainProgress, progress_on
from isostep.cli.race.picture import write_picture
from isostep.cli.race.results import Check, Run, Spread, Standing, Trial, standings
from isostep.cli.race.table import race_as_json, table_of
from isostep.cli.race.wording import accuracy_text, loss_text, terms_text, trial_text

BUDGET = Budget(steps=20, seeds=2, learning_rates=3)


def a_run(final: float, accuracy: float | None = 0.9, diverged: bool = False) -> Run:
    checks = (Check(0, 2.3, accuracy), Check(10, 1.0, accuracy), Check(20, final, accuracy))
    return Run(checks[:2] if diverged else checks, 15 if diverged else None, 0.125, 800, 100)


def places() -> list[Standing]:
    bad = Trial(1.0, (a_run(0, diverged=True), a_run(0.5)))
    return standings(
        {
            "Second": [Trial(0.1, (a_run(0.30), a_run(0.32))), Trial(0.01, (a_run(0.9),) * 2), bad],
            "First [b]&": [Trial(0.1, (a_run(0.1), a_run(0.2))), Trial(0.01, (a_run(0.6),) * 2)],
            "Lost": [bad],
        }
    )


def text_of(table: object, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_has_a_row_for_each_in_order_and_fits_80_columns() -> None:
    lines = text_of(table_of(places(), "a title")).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "a title" in lines[0]
    rows = [line for line in lines if line.strip()[:1].isdigit()]
    assert [row.split()[0] for row in rows] == ["1", "2", "3"]
    assert "First [b]&" in rows[0]
    assert "0.150 ± 0.071" in rows[0]
    assert "90.0 ± 0.0 %" in rows[0]
    assert "8.00" in rows[0]
    assert "diverged" in rows[2]


def test_a_best_rate_at_the_edge_is_marked_and_explained() -> None:
    first, second, lost = places()
    assert (first.at_the_edge, second.at_the_edge, lost.at_the_edge) == (True, False, True)
    text = text_of(table_of([first, second]))
    assert "0.1 *" in text
    assert "* the smallest or largest learning rate tried" in text
    assert "*" not in text_of(table_of([second]))


def test_json_holds_what_the_table_shows_and_no_infinity() -> None:
    document = json.loads(
        json.dumps(race_as_json("bowl", "torch", BUDGET, places()), allow_nan=False)
    )
    first, second, lost = document["standings"]
    assert document["learning_rates"] == 3
    assert first["optimizer"] == "First [b]&"
    assert first["loss"]["mean"] == pytest.approx(0.15)
    assert first["best_lr"] == 0.1
    assert second["trials"][2]["loss"] is None
    assert second["trials"][2]["runs"][0]["diverged_at"] == 15
    assert [check["step"] for check in first["trials"][0]["runs"][0]["curve"]] == [0, 10, 20]
    assert lost["loss"] is None


@pytest.mark.parametrize(
    ("spread", "text"),
    [
        (Spread(0.1234, 0.0567), "0.123 ± 0.057"),
        (Spread(0.1234, None), "0.123"),
        (Spread(12.34, 5.67), "12.3 ± 5.7"),
        (Spread(0.0, 0.0), "0.00 ± 0.00"),
        (Spread(1.2e-5, 3e-6), "0.0000120 ± 0.0000030"),
        (Spread(1.2e28, 3e27), "1.2e+28"),
        (Spread(math.inf, None), "diverged"),
    ],
)
def test_losses_are_shown_to_three_digits(spread: Spread, text: str) -> None:
    assert loss_text(spread) == text


def test_what_is_not_there_is_not_made_up() -> None:
    assert accuracy_text(None) == "–"
    assert "accuracy" not in trial_text(Trial(0.1, (a_run(0.5, accuracy=None),)))
    assert trial_text(places()[2].trials[0]) == "1 of 2 runs diverged"
    assert Spread.of([0.5]).deviation is None


def test_the_terms_name_the_whole_budget() -> None:
    text = terms_text(Budget(1000, 1, 5), "keras", places())
    for part in ("100 parameters", "5 learning rates", "1 seed each", "1,000 steps", "keras"):
        assert part in text


def test_a_curve_goes_as_far_as_every_seed_and_a_diverged_rate_is_a_cross() -> None:
    first, second, lost = places()
    band = band_of(first.best)
    assert (band.steps, band.mean[-1]) == ((0, 10, 20), pytest.approx(0.15))
    assert (band.low[-1], band.high[-1]) == (0.1, 0.2)
    assert band_of(lost.best).steps == (0, 10)
    found = sensitivity_of(second)
    assert (found.rates, found.diverged) == ((0.01, 0.1), (1.0,))
    low, high = loss_range(places())
    assert 0 < low < 0.15 < 2.3 < high


@pytest.mark.parametrize(("low", "high"), [(0.09, 3.1), (1e-5, 20), (1e-12, 1e9), (1.1, 1.9)])
def test_ticks_are_round_and_few(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert len(ticks) <= 15
    assert all(low <= tick <= high for tick in ticks)
    assert all(f"{tick:.0e}"[0] in "125" for tick in ticks)


def test_each_of_ten_optimizers_has_its_own_colour() -> None:
    labels = [str(number) for number in range(12)]
    assert len(set(colours_of(labels).values())) == len(PALETTE) == 10


def test_the_picture_shows_every_optimizer_in_its_colour(tmp_path: Path) -> None:
    order = ["Second", "First [b]&", "Lost"]
    write_picture(tmp_path / "race.png", "a $title_", places(), order)
    pixels = matplotlib.image.imread(tmp_path / "race.png")
    assert pixels.shape[:2] == (810, 1800)
    for colour in colours_of(order).values():
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        near = np.abs(pixels[..., :3] - wanted).max(axis=-1) < 0.02
        assert near.sum() > 100, colour


def test_a_picture_of_nothing_but_divergence_is_drawn(tmp_path: Path) -> None:
    write_picture(tmp_path / "race.png", "lost", [places()[2]], ["Lost"])


def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines() -> None:
    trial = places()[0].trials[0]
    pipe = progress_on(Console(file=io.StringIO(), width=40), 1, BUDGET)
    terminal = progress_on(
        Console(file=io.StringIO(), width=100, force_terminal=True, _environ={}), 1, BUDGET
    )
    assert (type(pipe), type(terminal)) == (PlainProgress, LiveProgress)
    for view in (pipe, terminal):
        with view:
            view.run_started("AdamW", 0.1, 0)
            view.run_reached(10)
            for run in trial.runs:
                view.run_finished(run)
            view.trial_finished("AdamW", trial, places())
    lines, frames = (view.console.file.getvalue() for view in (pipe, terminal))  # type: ignore[attr-defined]
    assert lines == "[2/6] AdamW lr=0.1: validation loss 0.150 ± 0.071, accuracy 90.0 ± 0.0 %\n"
    assert "━" in frames
    assert "First [b]&" in frames
    assert "33%" in frames


def test_kept_runs_open_no_display() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    view = LiveProgress(console, 1, BUDGET)
    with view:
        view.run_finished(a_run(0.1))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == ""
