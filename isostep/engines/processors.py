"""How many processors this process may use, and whether it is a forked one."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from dataclasses import dataclass
from pathlib import Path

PROC, CGROUPS = Path("/proc/self"), Path("/sys/fs/cgroup")

_FORKED_ONLY = 0x40  # Linux' PF_FORKNOEXEC: no program was started since the fork


@dataclass(frozen=True)
class Usable:
    """How many threads may run.

    Args:
        count: the number.
        why: what bounds it.
    """

    count: int
    why: str


@functools.cache
def usable() -> Usable:
    """The least of what affinity, control groups and `OMP_NUM_THREADS` allow."""
    bounds = [Usable(_affinity(), "the processors that this process may use")]
    share = quota()
    if share is not None:
        bounds.append(Usable(max(1, math.ceil(share)), "the control group's share of processors"))
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # one for each level
    if asked.isdecimal() and int(asked):
        bounds.append(Usable(int(asked), f"OMP_NUM_THREADS={asked}"))
    return min(bounds, key=lambda bound: bound.count)


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not every system has it
        return os.cpu_count() or 1


def quota() -> float | None:
    """How many processors' time the control groups of this process grant it; None if all."""
    found: list[float] = []
    for folder in _groups():
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            if (folder / "cpu.max").exists():
                time, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
            else:
                time = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8")
                period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8")
            if time != "max" and int(time) > 0:
                found.append(int(time) / int(period))
    return min(found, default=None)


def _groups() -> list[Path]:
    """The control groups of this process and those that they are in, of both versions."""
    found: list[Path] = []
    with contextlib.suppress(OSError):
        for line in (PROC / "cgroup").read_text(encoding="utf-8").splitlines():
            number, controllers, path = line.split(":", 2)
            if number != "0" and "cpu" not in controllers.split(","):
                continue
            root = CGROUPS / (controllers if number != "0" else "")
            inner = root / path.lstrip("/")
            found += [inner, *(p for p in inner.parents if p.is_relative_to(root))]
    return found


def is_fork() -> bool:
    """Whether this process is a copy of the one that forked it. Linux tells; elsewhere it is
    taken not to be."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = (PROC / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return bool(int(fields[6]) & _FORKED_ONLY)
    return False
