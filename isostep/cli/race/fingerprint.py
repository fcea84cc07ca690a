"""Short hashes that tell whether two runs are the same run."""

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any


def json_fingerprint(value: Any) -> str:
    """Return 32 hex digits that depend on a JSON value alone, not on the order of its keys.

    Raises:
        TypeError, ValueError: `value` holds something that JSON cannot (an array, NaN).
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def source_fingerprint(*functions: Any) -> str:
    """Return 32 hex digits of the text of the files that define `functions`.

    An edited file gives another fingerprint, so that results of the old text are not taken for
    results of the new. Functions without a readable source file (built in, typed at a prompt) add
    only their names.
    """
    digest = hashlib.sha256()
    for text in sorted({_source(function) for function in functions}):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:32]


def _source(function: Any) -> str:
    try:
        path = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        path = None
    if path is not None and Path(path).is_file():
        return Path(path).read_text(encoding="utf-8")
    return getattr(function, "__qualname__", type(function).__qualname__)
