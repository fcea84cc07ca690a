"""Finished runs on disk: one small JSON file each, so that an interrupted race goes on.

A file is named by a hash of everything that determines the run and is written in one atomic move.
A file that is damaged, foreign or of another format is as good as absent: the run is done again.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from isostep.cli.race.errors import RaceError
from isostep.cli.race.fingerprint import json_fingerprint
from isostep.cli.race.results import Check, Run

FORMAT = 1
OUR_FILES = re.compile(r"[0-9a-f]{32}\.json|\.[0-9a-f]{32}\.\d+\.part")


class Store:
    """The `runs` folder in a race's output directory.

    Args:
        directory: made if absent.

    Raises:
        RaceError: the directory cannot be made or written to.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RaceError(f"cannot keep runs in {str(directory)!r}: {error.strerror}") from None
        if not os.access(directory, os.W_OK):
            raise RaceError(f"cannot keep runs in {str(directory)!r}: not writable")

    def load(self, key: Mapping[str, Any]) -> Run | None:
        """Return the finished run of this key, or None if there is none that can be trusted."""
        try:
            document = json.loads(self._path(key).read_text(encoding="utf-8"))
            if document["checksum"] != _checksum(document["key"], document["run"]):
                return None
            return _run_of(document["run"]) if document["key"] == _plain(key) else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def save(self, key: Mapping[str, Any], run: Run) -> None:
        """Keep a finished run; a reader sees the whole file or none."""
        document = {"key": _plain(key), "run": _plain(asdict(run))}
        document["checksum"] = _checksum(document["key"], document["run"])
        path = self._path(key)
        part = path.with_name(f".{path.stem}.{os.getpid()}.part")
        try:
            with part.open("w", encoding="utf-8") as file:
                json.dump(document, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget every kept run; files that are not ours stay."""
        for path in self.directory.iterdir():
            if OUR_FILES.fullmatch(path.name):
                path.unlink()

    def _path(self, key: Mapping[str, Any]) -> Path:
        return self.directory / f"{json_fingerprint(dict(key))}.json"


def _plain(value: Mapping[str, Any]) -> Any:
    """Return `value` as a reader of its JSON will see it (lists for tuples)."""
    return json.loads(json.dumps(dict(value), allow_nan=False))


def _checksum(key: Any, run: Any) -> str:
    return json_fingerprint([FORMAT, key, run])


def _run_of(document: dict[str, Any]) -> Run:
    checks = tuple(Check(**check) for check in document.pop("checks"))
    return Run(checks=checks, **document)
