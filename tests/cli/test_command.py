"""`isostep race` and `isostep diff` as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from isostep import dialects

QUICK = ("--steps", "20", "--seeds", "2", "--learning-rates", "2")

LION = """
import isostep
from isostep.rules import Hyperparameter, Rule, Slot

def coefficients(xp, t, h):
    return {"lr": h.lr, "beta1": h.beta1, "beta2": h.beta2}

def update(xp, g, p, slots, c, o):
    m = slots["exp_avg"]
    step = xp.sign(c.beta1 * m + (1.0 - c.beta1) * g)
    return -c.lr * step, {"exp_avg": c.beta2 * m + (1.0 - c.beta2) * g}

isostep.rules.register(Rule(
    name="Lion",
    hyperparameters=(
        Hyperparameter("lr", 1e-4, "learning rate"),
        Hyperparameter("beta1", 0.9, "weight of the average in the step"),
        Hyperparameter("beta2", 0.99, "decay rate of the average"),
        Hyperparameter("weight_decay", 0.0, "weight decay"),
    ),
    slots=(Slot("exp_avg", "moving average of gradients"),),
    coefficients=coefficients,
    update=update,
))
"""


def isostep(
    *arguments: str, cwd: Path, check: bool = True, **more: Any
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "isostep.cli", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, check=check, **more
    )


def environment() -> dict[str, str]:
    here = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "100"}


def without_timings(text: str) -> Any:
    document = json.loads(text)
    for place in document["standings"]:
        del place["ms_per_step"]
        for trial in place["trials"]:
            for run in trial["runs"]:
                del run["ms_per_step"]
    return document


def test_a_race_leaves_a_table_a_picture_and_a_page(tmp_path: Path) -> None:
    done = isostep("race", "--optimizers", "SGD,AdamW(weight_decay=0)", *QUICK, cwd=tmp_path)
    assert "AdamW(weight_" in done.stdout
    assert "Budget of each optimizer: 2 learning rates, 2 seeds each, 20 steps" in done.stdout
    assert (tmp_path / "race/race.png").stat().st_size > 10_000
    assert "AdamW(weight_decay=0)" in (tmp_path / "race/race.html").read_text(encoding="utf-8")
    assert len(list((tmp_path / "race/runs").iterdir())) == 2 * 2 * 2
    assert "[4/8]" in done.stderr
    assert os.listdir(tmp_path) == ["race"]


def test_json_is_all_there_is_on_stdout_and_fresh_runs_repeat_it(tmp_path: Path) -> None:
    options = ("--optimizers", "Adam", *QUICK, "--out", "there", "--json")
    first = isostep("race", *options, cwd=tmp_path).stdout
    kept = sorted((tmp_path / "there/runs").iterdir())
    written = [file.stat().st_mtime_ns for file in kept]
    assert isostep("race", *options, cwd=tmp_path).stdout == first
    assert [file.stat().st_mtime_ns for file in kept] == written
    again = isostep("race", *options, "--fresh", cwd=tmp_path).stdout
    assert without_timings(again) == without_timings(first)
    assert all(new.stat().st_mtime_ns > old for new, old in zip(kept, written, strict=True))


def test_a_rule_of_ones_own_races_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "lion.py").write_text(LION)
    done = isostep(
        "race", "--load", "lion.py", "--optimizers", "Lion,SGD", *QUICK, "--json", cwd=tmp_path
    )
    places = json.loads(done.stdout)["standings"]
    (lion,) = (place for place in places if place["optimizer"] == "Lion")
    assert lion["trials"][0]["lr"] == 1e-4
    assert lion["state_bytes_per_parameter"] == 4.0


def test_an_interrupted_race_goes_on_and_ends_with_the_same_standings(tmp_path: Path) -> None:
    options = ("--optimizers", "SGD,Adam", "--steps", "200", "--seeds", "2", "--json")
    command = [sys.executable, "-m", "isostep.cli", "race", *options, "--out", "cut"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    )
    runs = tmp_path / "cut/runs"
    deadline = time.monotonic() + 60
    while not (runs.is_dir() and len(list(runs.glob("*.json"))) >= 3):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "of 20 runs are finished and kept in cut/runs. The same command goes on" in stderr
    assert "Traceback" not in stderr
    assert not list(runs.glob(".*"))
    assert 3 <= len(list(runs.iterdir())) < 20
    resumed = isostep("race", *options, "--out", "cut", cwd=tmp_path)
    whole = isostep("race", *options, "--out", "whole", cwd=tmp_path)
    assert without_timings(resumed.stdout) == without_timings(whole.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("race", "nothing"), "error: task 'nothing': expected 'digits', or FILE.py:NAME"),
        (("race", "--optimizers", "Adm"), "did you mean 'Adam'"),
        (("race", "--steps", "0"), "error: steps must be at least 1, got 0"),
        (("race", "--load", "nowhere.py"), "error: no file 'nowhere.py'"),
        (("race", "--dialect", "toch"), "did you mean 'torch'"),
        (("race", "--learning-rates", "many"), "error: cannot read the learning rates 'many'"),
        (("diff", "AdamW", "torch", "kera"), "did you mean 'keras'"),
        (("diff", "Adm", "torch", "keras"), "did you mean 'Adam'"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = isostep(*arguments, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_help_has_examples_and_loads_no_heavy_library(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['isostep', 'race', '--help']\n"
        "from isostep.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'numba', 'sklearn', 'matplotlib', 'plotly'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert 'isostep race --optimizers "AdamW,SGD(momentum=0.9)"' in done.stdout


def test_without_the_extra_the_command_says_how_to_install_it(tmp_path: Path) -> None:
    code = (
        "import isostep.cli, isostep.cli.extra as extra\n"
        "extra.LIBRARIES = ('typer', 'no_such_library')\n"
        "isostep.cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "needs no_such_library" in done.stderr
    assert "pip install 'isostep[cli]'" in done.stderr


def test_diff_prints_the_table_of_differences(tmp_path: Path) -> None:
    table = dialects.difference("AdamW", "torch", "keras")
    shown = isostep("diff", "AdamW", "torch", "keras", cwd=tmp_path).stdout
    assert table.title in shown
    assert all(row[0].split()[0] in shown for row in table.rows)
    printed = isostep("diff", "AdamW", "torch", "keras", "--json", cwd=tmp_path).stdout
    assert [list(row.values()) for row in json.loads(printed)] == table.rows
    same = isostep("diff", "AdamW", "torch", "torch", cwd=tmp_path).stdout
    assert "no difference" in same
