"""How large a directory of kernels grows: entries that were not used for longest go first.

An entry is used when it is loaded. Files that are not the cache's own are neither counted nor
touched: the directory may hold others.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Collection
from dataclasses import dataclass

from isostep.compile.trust import Directory

LIMIT = 256 << 20
"""Bytes that a directory may hold unless `$ISOSTEP_CACHE_SIZE` says otherwise."""
_AFTERWARDS = 0.9  # of the limit: so that not every kernel that follows looks for room
_RECENT = 60.0  # seconds: loading an entry again writes nothing
_ABANDONED = 3600.0  # seconds after which the file of a writer that was killed is deleted
_FILE = re.compile(r"(?P<entry>[0-9a-f]{32})\.(?:kernel|py)")
_LEFT_OVER = re.compile(r"\.?[0-9a-f]{32}\.(?:lock|kernel\.[0-9a-f]{12}|py\.[0-9a-f]{12})")
_SIZE = re.compile(r"\s*(\d+)\s*([KMG]?)(?:i?B)?\s*", re.IGNORECASE)


@dataclass
class Entry:
    """One kernel.

    Args:
        name: its name.
        files: its machine code and its source, as far as they are there.
        bytes: their size.
        used: when it was loaded or written, in seconds since 1970.
    """

    name: str
    files: list[str]
    bytes: int
    used: float


def limit() -> int:
    """Bytes that a directory may hold; a setting that is no size counts as none."""
    given = _SIZE.fullmatch(os.environ.get("ISOSTEP_CACHE_SIZE", ""))
    if given is None:
        return LIMIT
    return int(given[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[given[2].upper()]


def entries(found: Directory) -> list[Entry]:
    """What a directory holds, what was used last at the end.

    Raises:
        OSError: it cannot be listed.
    """
    made: dict[str, Entry] = {}
    for name, status in found.files().items():
        match = _FILE.fullmatch(name)
        if match:
            entry = made.setdefault(match["entry"], Entry(match["entry"], [], 0, 0.0))
            entry.files.append(name)
            entry.bytes += status.st_size
            entry.used = max(entry.used, status.st_mtime)
    return sorted(made.values(), key=lambda entry: entry.used)


def note_use(found: Directory, name: str) -> None:
    """Note that an entry is loaded: its time of modification is that of its last use, as many file
    systems do not write down when files are read."""
    with contextlib.suppress(OSError):  # others' directories are only read
        found.touch(f"{name}.kernel", older_than=time.time() - _RECENT)


def make(found: Directory, in_use: Collection[str]) -> None:
    """Delete what is beyond the limit, but nothing that this process uses. What other processes
    have loaded does not need its file any more."""
    with contextlib.suppress(OSError):
        kept = entries(found)
        total = sum(entry.bytes for entry in kept)
        if total > limit():
            for entry in kept:
                if total <= limit() * _AFTERWARDS:
                    break
                if entry.name not in in_use:
                    _delete(found, entry.files)
                    total -= entry.bytes
        now = time.time()
        for name, status in found.files().items():
            if _LEFT_OVER.fullmatch(name) and now - status.st_mtime > _ABANDONED:
                _delete(found, [name])


def clear(found: Directory) -> list[Entry]:
    """Delete all entries, and return them.

    Raises:
        OSError: the directory cannot be listed.
    """
    before = entries(found)
    for entry in before:
        _delete(found, entry.files)
    _delete(found, [name for name in found.files() if _LEFT_OVER.fullmatch(name)])
    left = {entry.name for entry in entries(found)}
    return [entry for entry in before if entry.name not in left]


def _delete(found: Directory, names: list[str]) -> None:
    for name in names:
        with contextlib.suppress(OSError):  # another process was quicker, or has it open
            found.remove(name)
