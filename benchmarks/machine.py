"""The machine that was measured on, and the environment that workers get."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "FLAGS_paddle_num_threads",
)


def cores() -> int:
    """The processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not every system has it
        return os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """Processor, memory and system."""
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gib": _memory(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """What isostep itself stands on."""
    import isostep

    names = ("numpy", "numba", "llvmlite")
    return {"isostep": isostep.__version__} | {n: importlib.metadata.version(n) for n in names}


def load() -> float | None:
    """The mean number of running processes over the last minute."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def environment(threads: int, peers: list[str], huge_pages: bool) -> dict[str, str]:
    """The environment of a worker: threads, backend and memory.

    NumPy asks Linux for huge pages, other frameworks leave it to the system. With `huge_pages`
    glibc asks for all of them, which spares those that allocate temporaries many page faults.
    """
    backend = {"keras-torch": "torch", "keras-jax": "jax", "keras-tf": "tensorflow"}
    chosen = {name: str(threads) for name in _THREADS}
    chosen |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    if huge_pages:
        chosen["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    for peer in peers:
        if peer in backend:
            chosen["KERAS_BACKEND"] = backend[peer]
    return {**os.environ, **chosen}


def _cpu() -> str:
    lines = _lines("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory() -> float | None:
    lines = _lines("/proc/meminfo")
    kib = [int(line.split()[1]) for line in lines if line.startswith("MemTotal")]
    return round(kib[0] / 2**20, 1) if kib else None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
