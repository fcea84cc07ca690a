"""The frameworks' own outcomes, kept in `.peers/` so that they need not run again.

They change only with the framework, its tests and Python; `--keep-theirs` takes them from here.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict
from pathlib import Path

from peers.process import REPOSITORY
from peers.runner import Outcome, Run
from peers.suites import Suite

FOLDER = REPOSITORY / ".peers"


def key(suite: Suite, checkouts: Path | None) -> str:
    """What the outcomes depend on."""
    stated = (suite.version, platform.python_version(), suite.environment, suite.arguments)
    found = hashlib.sha256(repr(stated).encode())
    root = suite.root(checkouts)
    for path in suite.paths(checkouts):
        found.update(path.encode() + (root / path).read_bytes())
    return found.hexdigest()


def read(suite: Suite, checkouts: Path | None) -> Run | None:
    """The framework's own outcomes, if nothing has changed since they were written."""
    path = FOLDER / f"{suite.name}.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    if found["key"] != key(suite, checkouts):
        return None
    outcomes = {test: Outcome(**fields) for test, fields in found["outcomes"].items()}
    return Run(outcomes, found["errors"])


def write(suite: Suite, checkouts: Path | None, run: Run) -> None:
    """Keep them."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{suite.name}.json"
    outcomes = {test: asdict(outcome) for test, outcome in run.outcomes.items()}
    document = {"key": key(suite, checkouts), "outcomes": outcomes, "errors": run.errors}
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document))
    part.replace(path)
