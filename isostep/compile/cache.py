"""Compiled kernels on disk: machine code by the hash of everything it depends on.

An entry is one file, written whole or not at all, so several processes may use one directory. It
carries its own digest: a damaged entry is compiled anew and replaced. Where the directory cannot be
written, kernels live as long as the process. `ISOSTEP_CACHE_DIR` chooses the directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

_DIGEST = hashlib.sha256
_DIGEST_SIZE = _DIGEST().digest_size
_MAGIC = b"isostep kernel 1\n"


def directory() -> Path:
    """Where kernels are kept: `$ISOSTEP_CACHE_DIR`, else `isostep` under the user's cache."""
    chosen = os.environ.get("ISOSTEP_CACHE_DIR")
    if chosen:
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "isostep"


def key(*parts: str) -> str:
    """The name of an entry that depends on `parts`."""
    return _DIGEST("\0".join(parts).encode()).hexdigest()[:32]


def load(name: str) -> bytes | None:
    """The content of entry `name`; None if there is none or it is damaged."""
    try:
        blob = (directory() / f"{name}.kernel").read_bytes()
    except OSError:
        return None
    head = len(_MAGIC) + _DIGEST_SIZE
    digest, content = blob[len(_MAGIC) : head], blob[head:]
    intact = blob.startswith(_MAGIC) and _DIGEST(content).digest() == digest
    return content if intact else None


def save(name: str, content: bytes, source: str) -> None:
    """Keep `content`, and beside it the readable `source`; a directory that cannot be written is
    no error."""
    blob = _MAGIC + _DIGEST(content).digest() + content
    with contextlib.suppress(OSError):
        directory().mkdir(parents=True, exist_ok=True)
        _replace(directory() / f"{name}.py", source.encode())
        _replace(directory() / f"{name}.kernel", blob)


def _replace(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
