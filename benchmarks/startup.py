"""Start-up in fresh processes: the import, and the first step with and without compiled kernels."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any


def measure(imports: int = 7, cold: int = 3) -> dict[str, Any]:
    """Medians in milliseconds.

    Args:
        imports: processes that find their kernels on disk.
        cold: processes that compile them.
    """
    with tempfile.TemporaryDirectory() as folder:
        _process(folder, "first")  # compiles Python's own files, as an installation does
        colds = [_process(folder, str(k)) for k in range(cold)]
        warms = [_process(folder, "0") for _ in range(imports)]
    return {
        "front_end_import_ms": statistics.median(f["front_end"] for f in colds + warms),
        "import_ms": statistics.median(f["import"] for f in colds + warms),
        "cold_first_step_ms": statistics.median(f["first_step"] for f in colds),
        "disk_first_step_ms": statistics.median(f["first_step"] for f in warms),
        "disk_first_step_imports_numba": any(f["numba"] for f in warms),
        "repetitions": {"import": imports + cold, "cold": cold, "disk": imports},
    }


def _process(folder: str, kernels: str) -> dict[str, Any]:
    environment = os.environ | {
        "ISOSTEP_CACHE_DIR": os.path.join(folder, kernels),
        "PYTHONPYCACHEPREFIX": os.path.join(folder, "bytecode"),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-m", "benchmarks.first_step"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)
