"""Compiled kernels on disk: machine code by the hash of everything it depends on.

An entry is one file, written whole or not at all, so several processes may use one directory. It
carries its own digest, of its name too: a damaged entry, and one under another's name, is compiled
anew and replaced. Nothing is loaded that others than the user and root could have written
(`trust.py`).

- `ISOSTEP_CACHE_DIR` chooses the directory; else it is `isostep` under the user's cache. Where it
  cannot be trusted, or there is no home, kernels are kept in a private directory under the
  temporary one; where that cannot be written either, they live as long as the process.
- `ISOSTEP_CACHE_PATH` names more directories, which are only read: a cache that came with a
  container image, or that a group shares.
- `ISOSTEP_CACHE_SIZE` bounds the directory, in bytes or as `100M`: see `room.py`.

Whatever is wrong with a cache costs a compilation and never a step.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Generator
from pathlib import Path

from isostep.compile import room, turns
from isostep.compile.trust import Directory, UntrustedError, opened

_DIGEST = hashlib.sha256
_DIGEST_SIZE = _DIGEST().digest_size
_MAGIC = b"isostep kernel 2\n"
_SHARED, _PRIVATE = 0o755, 0o700  # modes of directories, before the umask

_used: set[str] = set()
_warned = False


def directory() -> Path | None:
    """Where kernels are to be kept: `$ISOSTEP_CACHE_DIR`, else `isostep` under the user's cache,
    else, where the user has no home, a private directory; None if there is none of these."""
    chosen = os.environ.get("ISOSTEP_CACHE_DIR")
    if chosen:
        return Path(chosen)
    caches = os.environ.get("XDG_CACHE_HOME")
    if caches:
        return Path(caches) / "isostep"
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and a user whom the system does not know
        return private()
    return home / ".cache" / "isostep" if home.is_absolute() else private()


def private() -> Path | None:
    """The user's own directory under the system's temporary one; None if there is none."""
    user = getattr(os, "geteuid", None)
    try:
        temporary = Path(tempfile.gettempdir())
    except OSError:
        return None
    return temporary / ("isostep" if user is None else f"isostep-{user()}")


def shared() -> list[Path]:
    """The directories that are only read: `$ISOSTEP_CACHE_PATH`."""
    given = os.environ.get("ISOSTEP_CACHE_PATH", "").split(os.pathsep)
    return [Path(name) for name in given if name]


def refusal(path: Path) -> str:
    """Why nothing is loaded from a directory; empty where it is trusted, or not there."""
    try:
        with opened(path):
            return ""
    except UntrustedError as error:
        return str(error)
    except OSError:
        return ""


def own() -> list[Path]:
    """The user's directories: entries are kept in the first that can be written.

    The private one stands in for a directory that is not trusted, and for the usual one where it
    cannot be made. A directory that the user chose and that cannot be written is only read.
    """
    chosen = directory()
    if chosen is not None and os.environ.get("ISOSTEP_CACHE_DIR") and not refusal(chosen):
        return [chosen]
    return list(dict.fromkeys(place for place in (chosen, private()) if place is not None))


def kept_in() -> Path | None:
    """The directory that new entries go to, as far as can be told; None if there is none."""
    for place in own():
        there = next((p for p in (place, *place.parents) if os.path.exists(p)), None)
        if there is None or not os.path.isdir(there) or not os.access(there, os.W_OK):
            continue
        if not refusal(place):
            return place
    return None


def key(*parts: str) -> str:
    """The name of an entry that depends on `parts`."""
    return _DIGEST("\0".join(parts).encode()).hexdigest()[:32]


def used() -> frozenset[str]:
    """The names of the entries that this process has loaded or made, whether they are kept or
    not."""
    return frozenset(_used)


def load(name: str) -> bytes | None:
    """The content of entry `name`; None if there is none, or none that is whole and trusted."""
    for place in [*own(), *shared()]:
        with _harmless(), opened(place) as found:
            content = _read(found, name)
            if content is not None:
                _used.add(name)
                return content
    return None


def save(name: str, content: bytes, source: str) -> bool:
    """Keep `content`, and beside it the readable `source`.

    Returns:
        Whether it is kept: that it cannot be is no error.
    """
    _used.add(name)
    for place in own():
        with _harmless(), opened(place, _mode(place)) as found:
            found.replace(f"{name}.py", source.encode())
            found.replace(f"{name}.kernel", _MAGIC + _digest(name, content) + content)
            room.make(found, _used)
            return True
    return False


@contextlib.contextmanager
def turn(name: str, given_up: Callable[[], bool] = lambda: False) -> Generator[None]:
    """While entry `name` is compiled: another process that is at it is waited for, for a bounded
    time, or until it is `given_up`. Look for the entry inside."""
    with contextlib.ExitStack() as taken:
        for place in own():
            with _harmless():
                found = taken.enter_context(opened(place, _mode(place)))
                taken.enter_context(turns.turn(found, name, given_up))
                break
        yield


# -- one directory ---------------------------------------------------------------------------------


def _digest(name: str, content: bytes) -> bytes:
    return _DIGEST(name.encode() + b"\0" + content).digest()


def _read(found: Directory, name: str) -> bytes | None:
    blob = found.read(f"{name}.kernel")
    head = len(_MAGIC) + _DIGEST_SIZE
    digest, content = blob[len(_MAGIC) : head], blob[head:]
    if not blob.startswith(_MAGIC) or _digest(name, content) != digest:
        return None
    room.note_use(found, name)
    return content


def _mode(place: Path) -> int:
    return _PRIVATE if place == private() else _SHARED


@contextlib.contextmanager
def _harmless() -> Generator[None]:
    """What is wrong with one directory leads on to the next."""
    try:
        yield
    except OSError:
        pass
    except UntrustedError as error:
        _warn(error)


def _warn(error: UntrustedError) -> None:
    """Say once what is not trusted. Where warnings are errors, this one still stops no step."""
    global _warned
    if _warned:
        return
    _warned = True
    text = (
        f"isostep does not load compiled kernels from {error.path}: it {error.reason}, and whoever "
        f"can write it could run code in this process. Kernels are compiled, and kept in a private "
        f"directory if there is one. Make it yours (chown) and yours alone to write "
        f"(chmod go-w), or set ISOSTEP_CACHE_DIR to a directory that is; `isostep cache` shows "
        f"which are used"
    )
    try:
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    except RuntimeWarning:
        print(text, file=sys.stderr)
