"""The pytest plugin that puts isostep's optimizers in the place of a framework's own.

    python -m pytest -p peers.plugin --peer optax --side ours FILE

It substitutes before any test module is imported, counts for each test how often isostep's classes
were made and stepped, and with `--record` writes one JSON object a line: the number of tests, each
test as it begins, and its outcome.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

import pytest

from peers import places
from peers.counting import Counts

OURS, THEIRS = "ours", "theirs"
CHILD = "ISOSTEP_PEERS_CHILD"
"""The variable that tells the processes which tests start what to substitute."""
WORST = ("failed", "skipped", "passed")
"""Outcomes of a test's phases, the one that decides first."""
MESSAGE = 2000
"""Characters of a failure that are kept, from its end."""


def pytest_addoption(parser: Any) -> None:
    """The plugin's options."""
    group = parser.getgroup("peers")
    group.addoption("--peer", help="whose optimizers: a module of peers.places")
    group.addoption("--side", choices=(THEIRS, OURS), default=OURS)
    group.addoption("--record", type=Path, help="file to append JSON lines to")
    group.addoption("--skip-ids", type=Path, help="file with ids of tests to leave out")


def pytest_configure(config: Any) -> None:
    """Substitute, if this is isostep's side."""
    peer = config.getoption("--peer")
    if peer is None:
        return
    del sys.argv[1:]  # tests that read flags would find pytest's
    found = places.load(peer)
    found.prepare()
    record = config.getoption("--record") or Path(os.devnull)
    path = Path(tempfile.mkdtemp(prefix="isostep-peers-")) / "counts"
    config.add_cleanup(lambda: shutil.rmtree(path.parent))
    counts = Counts(found.tracing, path)
    if config.getoption("--side") == OURS:
        found.substitute()
        counts.watch(found)
        os.environ[CHILD] = f"{peer}:{path}"
        config.add_cleanup(lambda: os.environ.pop(CHILD))
    config.pluginmanager.register(Recorder(counts, record.open("a", buffering=1)))


def substitute_in_child(told: str) -> None:
    """Substitute in a process that a test has started.

    Args:
        told: the peer, a colon, and the file of counts.
    """
    peer, _, path = told.partition(":")
    found = places.load(peer)
    found.prepare()
    found.substitute()
    Counts(found.tracing, Path(path)).watch(found)


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out what has run already."""
    path = config.getoption("--skip-ids")
    if path is not None:
        done = set(path.read_text().splitlines())
        items[:] = [item for item in items if item.nodeid not in done]


class Recorder:
    """Writes down what each test did.

    Args:
        counts: of isostep's classes.
        to: an open file.
    """

    def __init__(self, counts: Counts, to: IO[str]) -> None:
        self._counts, self._to = counts, to
        self._reports: list[Any] = []

    def _write(self, record: dict[str, Any]) -> None:
        self._to.write(json.dumps(record) + "\n")
        self._to.flush()

    def pytest_collection_finish(self, session: Any) -> None:
        """Say how many tests there are."""
        self._write({"collected": len(session.items)})

    def pytest_collectreport(self, report: Any) -> None:
        """Count a file that fails at import, or skips itself, as one test."""
        if report.outcome != "passed":
            self._write(
                {"id": report.nodeid, "outcome": report.outcome, "message": _said([report])}
            )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Generator[None, Any, Any]:
        """Count and collect around one test."""
        self._write({"began": item.nodeid})
        self._counts.start()
        self._reports = []
        result = yield
        self._write(
            {
                "id": item.nodeid,
                "outcome": _outcome(self._reports),
                "seconds": round(sum(r.duration for r in self._reports), 2),
                "made": self._counts.made,
                "steps": self._counts.steps,
                "message": _said(self._reports),
            }
        )
        return result

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep the report of a phase."""
        self._reports.append(report)


def _outcome(reports: list[Any]) -> str:
    found = {report.outcome for report in reports}
    return next((outcome for outcome in WORST if outcome in found), "failed")


def _said(reports: list[Any]) -> str:
    """Why it failed, from the end, where the exception stands."""
    texts = [str(r.longrepr) for r in reports if r.outcome == "failed" and r.longrepr]
    return "\n".join(texts)[-MESSAGE:]
