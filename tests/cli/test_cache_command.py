"""`isostep cache` as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from isostep.compile import cache

from .test_command import environment

MODELS = """
import numpy
def build():
    return {"a": numpy.ones((4, 8), numpy.float32), "b": [numpy.ones(3, numpy.float32)]}
def module():
    import torch
    return torch.nn.Linear(8, 4)
def nothing():
    return None
"""
NAMES = [cache.key(name) for name in "abc"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with models, and a cache with three entries."""
    (tmp_path / "model.py").write_text(MODELS)
    monkeypatch.setenv("ISOSTEP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("ISOSTEP_CACHE_PATH", raising=False)
    for name in NAMES:
        assert cache.save(name, bytes(1000), "source")
    return tmp_path


def isostep(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "isostep.cli", "cache", *arguments]
    env = environment() | more
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def answer(*arguments: str, cwd: Path, **more: str) -> Any:
    done = isostep(*arguments, "--json", cwd=cwd, **more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def test_it_shows_path_entries_and_size(place: Path) -> None:
    directory = place / "cache"
    found = answer(cwd=place, ISOSTEP_CACHE_SIZE="2M")
    row = {"path": str(directory), "use": "kept here", "entries": 3, "bytes": size(directory)}
    assert found == {"directories": [row], "limit": 2 << 20}
    table = isostep(cwd=place, ISOSTEP_CACHE_SIZE="2M").stdout
    assert "at most 2.0 MiB" in table
    assert "3.1 KiB" in table


def test_it_says_what_is_refused_and_what_is_used_instead(place: Path) -> None:
    (place / "cache").chmod(0o777)
    refused, instead, read = answer(cwd=place, ISOSTEP_CACHE_PATH=str(place))["directories"]
    assert refused["use"] == f"refused: {place / 'cache'} can be written by everybody"
    assert instead["path"].startswith(str(place / "isostep"))
    assert instead["use"].startswith("kept here")
    assert (read["path"], read["use"], read["entries"]) == (str(place), "only read", 0)


def test_clear_deletes_entries_and_nothing_else(place: Path) -> None:
    directory = place / "cache"
    (directory / "mine.py").write_text("mine")
    (directory / f".{NAMES[0]}.kernel.0123456789ab").touch()
    (directory / f"{NAMES[0]}.lock").touch()
    (cleared,) = answer("clear", cwd=place)["cleared"]
    assert (cleared["path"], cleared["entries"]) == (str(directory), 3)
    assert os.listdir(directory) == ["mine.py"]
    assert "deleted 0 entries" in isostep("clear", cwd=place).stdout


def test_clear_touches_no_directory_that_others_write(place: Path) -> None:
    (place / "cache").chmod(0o777)
    done = isostep("clear", cwd=place)
    assert done.returncode == 2
    assert "can be written by everybody" in done.stderr
    assert len(os.listdir(place / "cache")) == 6


@pytest.mark.parametrize("name", ["build", "module"])
def test_warm_compiles_what_a_step_needs(name: str, place: Path) -> None:
    asked = ("warm", f"model.py:{name}", "--optimizer", "adafactor")
    first = answer(*asked, cwd=place)
    assert first["compiled"] == first["kernels"] >= 2
    assert first["lost"] == 0
    assert all(text.startswith("native") for text in first["ran"])
    again = answer(*asked, cwd=place)
    assert again == first | {"compiled": 0}
    assert "0 of them compiled now" in isostep(*asked, cwd=place).stdout


def test_warm_says_when_nothing_can_be_kept(place: Path) -> None:
    nowhere = str(place / "model.py" / "cache")
    asked = ("warm", "model.py:build", "--optimizer", "SGD(momentum=0.9)")
    done = isostep(*asked, cwd=place, ISOSTEP_CACHE_DIR=nowhere)
    assert done.returncode == 2
    assert "kernels could not be kept" in done.stderr


@pytest.mark.parametrize(
    ("model", "optimizer", "text"),
    [
        ("model.py", "adam", "expected FILE.py:NAME"),
        ("none.py:build", "adam", "no file 'none.py'"),
        ("model.py:none", "adam", "has no function 'none'"),
        ("model.py:nothing", "adam", "build() returned NoneType"),
        ("model.py:build", "adamm", "has SGD, Adagrad"),
        ("model.py:build", "adam, sgd", "name one"),
        ("model.py:build", "adam(", "cannot read the optimizers"),
        ("model.py:build", "adam(lr=-1)", "lr"),
        ("model.py:build", "adam(beta=1)", "beta"),
    ],
)
def test_warm_says_what_is_wrong(model: str, optimizer: str, text: str, place: Path) -> None:
    done = isostep("warm", model, "--optimizer", optimizer, cwd=place)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr
