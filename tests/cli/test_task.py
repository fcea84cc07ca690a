"""Loading a task of one's own, and what is said of things that are none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from isostep.cli.race.digits import Digits
from isostep.cli.race.errors import RaceError
from isostep.cli.race.task import load_task, task_identity

OWN_TASK = """
from dataclasses import dataclass
import numpy as np

name = "line"

def initial_parameters(seed):
    return {"w": np.random.default_rng(seed).normal(size=3)}

def batches(seed, steps):
    for _ in range(steps):
        yield None

def loss_and_gradients(params, batch):
    return float((params["w"] ** 2).sum()), {"w": 2 * params["w"]}

def validate(params):
    return {"loss": float((params["w"] ** 2).sum())}

@dataclass
class Line:
    slope: float = 2.0
    name: str = "line"

    @property
    def config(self):
        return {"slope": self.slope}

    initial_parameters = staticmethod(initial_parameters)
    batches = staticmethod(batches)
    loss_and_gradients = staticmethod(loss_and_gradients)
    validate = staticmethod(validate)

task = Line()
steep = Line(9.0)

def make():
    return Line(3.0)

class Half:
    name = "half"
    def initial_parameters(self, seed): ...
    def batches(self, seed, steps): ...

nothing = 3
"""

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(text: str) -> str:
        (tmp_path / "my_task.py").write_text(text)
        return str(tmp_path / "my_task.py")

    return write


def test_digits_is_the_task_that_comes_along() -> None:
    assert load_task("digits") == Digits()


@pytest.mark.parametrize("name", ["task", "Line", "make"])
def test_an_instance_a_class_or_a_function_of_ones_own_file_is_a_task(
    write: Write, name: str
) -> None:
    task = load_task(f"{write(OWN_TASK)}:{name}")
    assert task.name == "line"
    assert task.initial_parameters(0)["w"].shape == (3,)


def test_a_file_may_import_its_neighbours(write: Write, tmp_path: Path) -> None:
    (tmp_path / "a_neighbour.py").write_text("SLOPE = 4.0\n")
    task = load_task(f"{write('from a_neighbour import SLOPE' + OWN_TASK)}:task")
    assert task.name == "line"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", r"task 'digit': expected 'digits', or FILE.py:NAME"),
        ("my_task.py", r"expected 'digits', or FILE.py:NAME such as my_task.py:task"),
        ("my_task.py:", r"expected 'digits'"),
        ("no_such.py:task", r"no file 'no_such.py' \(looked in "),
        ("no_such_package.tasks:task", r"no module named 'no_such_package'"),
        ("HERE:tusk", r"has no 'tusk'; it has .*task"),
        ("HERE:nothing", r"is int, which is no task: it lacks name \(a string\), initial_param"),
        ("HERE:Half", r"is Half, .* lacks loss_and_gradients, validate\. A task has name, "),
    ],
)
def test_what_is_no_task_is_told_why(write: Write, spec: str, message: str) -> None:
    with pytest.raises(RaceError, match=message):
        load_task(spec.replace("HERE", write(OWN_TASK)))


def test_mistakes_in_the_file_itself_keep_their_own_error(write: Write) -> None:
    with pytest.raises(ZeroDivisionError):
        load_task(f"{write('1 / 0')}:task")
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        load_task(f"{write('import not_installed_anywhere')}:task")


def test_identity_follows_name_config_and_source(write: Write) -> None:
    path = write(OWN_TASK)
    task, steep = load_task(f"{path}:task"), load_task(f"{path}:steep")
    assert task_identity(task) == task_identity(load_task(f"{path}:Line"))
    assert task_identity(task) != task_identity(steep)
    before = task_identity(task)
    write(OWN_TASK + "\n# edited\n")
    assert task_identity(task)["source"] != before["source"]


def test_a_config_that_json_cannot_hold_is_refused(write: Write) -> None:
    task = load_task(f"{write(OWN_TASK)}:task")
    task.slope = {1, 2}  # type: ignore[attr-defined]
    with pytest.raises(RaceError, match=r"task 'line': config must be a mapping that JSON can"):
        task_identity(task)
