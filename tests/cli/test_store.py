"""Finished runs on disk: read back exactly, or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from isostep.cli.race.errors import RaceError
from isostep.cli.race.results import Check, Run
from isostep.cli.race.store import Store

KEY: dict[str, Any] = {"task": {"config": {"hidden": (64, 32)}}, "learning_rate": 0.1, "seed": 0}
RUN = Run((Check(0, 2.5, 0.1), Check(10, 0.1 + 0.2, None)), None, 0.25, 800, 100)


def kept_file(store: Store) -> Path:
    (path,) = store.directory.iterdir()
    return path


def test_a_run_is_read_back_exactly(store: Store) -> None:
    store.save(KEY, RUN)
    assert store.load(KEY) == RUN
    assert store.load({**KEY, "seed": 1}) is None


def test_the_order_of_a_key_does_not_matter(store: Store) -> None:
    store.save(KEY, RUN)
    assert store.load(dict(reversed(KEY.items()))) == RUN


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_cut_file_is_not_trusted(store: Store, share: float) -> None:
    store.save(KEY, RUN)
    data = kept_file(store).read_bytes()
    kept_file(store).write_bytes(data[: int(share * len(data))])
    assert store.load(KEY) is None


@pytest.mark.parametrize("content", [b"null", b"[]", b"3", b'"x"', b"{}", b"\xff\x00", b"{" * 9])
def test_a_foreign_file_is_not_trusted(store: Store, content: bytes) -> None:
    store.save(KEY, RUN)
    kept_file(store).write_bytes(content)
    assert store.load(KEY) is None


def test_a_changed_number_is_not_trusted(store: Store) -> None:
    store.save(KEY, RUN)
    text = kept_file(store).read_text()
    assert "2.5" in text
    kept_file(store).write_text(text.replace("2.5", "2.4"))
    assert store.load(KEY) is None


def test_a_run_under_another_runs_name_is_not_trusted(store: Store) -> None:
    store.save(KEY, RUN)
    other = {**KEY, "seed": 1}
    path = kept_file(store)
    store.save(other, RUN)
    for file in store.directory.iterdir():
        file.write_bytes(path.read_bytes())
    assert (store.load(KEY), store.load(other)) == (RUN, None)


def test_an_interrupted_save_leaves_nothing_behind(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.save(KEY, RUN)
    assert list(store.directory.iterdir()) == []


def test_an_interrupted_save_keeps_what_was_there(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(KEY, RUN)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dump", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.save(KEY, RUN)
    assert store.load(KEY) == RUN


def test_clearing_forgets_runs_and_nothing_else(store: Store) -> None:
    store.save(KEY, RUN)
    leftover = store.directory / f".{'0' * 32}.123.part"
    mine = store.directory / "notes.json"
    for file in (leftover, mine):
        file.write_text("{}")
    store.clear()
    assert list(store.directory.iterdir()) == [mine]


def test_a_place_that_cannot_hold_runs_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RaceError, match=r"cannot keep runs in .*file"):
        Store(tmp_path / "file" / "runs")
