"""Numba's settings that change the machine code of a kernel: a part of its name in the cache.

Else a kernel that was once compiled with `NUMBA_OPT=0` would be slow for ever, in processes that
never heard of it. Numba reads settings from `NUMBA_*` variables and from a file in the working
directory, and programs set them in `numba.config`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

_FILE = ".numba_config.yaml"
_DEFAULTS = {
    "BOUNDSCHECK": "None",
    "CPU_FEATURES": "None",
    "CPU_NAME": "None",
    "DEBUGINFO_DEFAULT": "0",
    "LOOP_VECTORIZE": "1",
    "OPT": "3",
    "SLP_VECTORIZE": "0",
}
"""What decides code, by the name in `numba.config`, and Numba's defaults."""
_VARIABLES = {"DEBUGINFO_DEFAULT": "DEBUGINFO"}  # the variable has another name
_HARMLESS = (
    *("CACHE_", "CHROME_TRACE", "COLOR_SCHEME", "CUDA_", "DISABLE_CUDA", "DISABLE_JIT"),
    *("DISABLE_PERFORMANCE_WARNINGS", "DUMP_", "ENABLE_CUDASIM", "FULL_TRACEBACKS", "NUM_THREADS"),
    *("SHOW_HELP", "THREADING_LAYER"),
)
"""Beginnings of variables that decide nothing of it. All others count, known or not."""


def text() -> str:
    """The settings that differ from Numba's defaults; empty if none does."""
    found = {**_of_environment(), **_of_program()}
    changed = {name: value for name, value in found.items() if value != _DEFAULTS.get(name)}
    with contextlib.suppress(OSError):
        changed[_FILE] = Path(_FILE).read_text(encoding="utf-8", errors="replace")
    return "\n".join(f"{name}={value}" for name, value in sorted(changed.items()))


def _of_environment() -> dict[str, str]:
    names = {variable: name for name, variable in _VARIABLES.items()}
    given = {
        variable.removeprefix("NUMBA_"): value
        for variable, value in os.environ.items()
        if variable.startswith("NUMBA_")
    }
    found = {
        names.get(variable, variable): value
        for variable, value in given.items()
        if not variable.startswith(_HARMLESS)
    }
    if found.get("CPU_NAME", "").lower() == "generic":
        found.setdefault("CPU_FEATURES", "")  # as Numba does
    return found


def _of_program() -> dict[str, str]:
    """What `numba.config` holds, if the process has Numba: it is asked without being imported."""
    config = getattr(sys.modules.get("numba"), "config", None)
    if config is None:
        return {}
    config.reload_config()  # as Numba does before it compiles: variables may have changed
    return {name: _written(getattr(config, name, None)) for name in _DEFAULTS}


def _written(value: object) -> str:
    """A setting as one writes it in a variable."""
    return str(value).removeprefix("_OptLevel(").rstrip(")").strip("'")
