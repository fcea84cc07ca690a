"""The dry run: which parameters, groups, slots, bytes and kernels a step will use."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from isostep.table import Table


@dataclass(frozen=True)
class PlanEntry:
    """What the plan says of one parameter.

    Args:
        name: the parameter.
        shape: its shape.
        dtype: its dtype.
        group: the pattern of its group, or `"(default)"`.
        slots: shape and dtype of each array kept for it, by name.
        state_bytes: bytes of those arrays.
        step_bytes: bytes that one step moves: each pass's reads and writes; 0 if not known.
        kernel: what runs: engine, layout, passes, dtype of the arithmetic.
        staged: it is copied to a dense array before the step and back after it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    group: str
    slots: dict[str, tuple[tuple[int, ...], str]]
    state_bytes: int
    step_bytes: int
    kernel: str
    staged: bool


@dataclass(frozen=True)
class Plan:
    """What a step will do, before it is done.

    Args:
        entries: one for each parameter.
        groups: the hyperparameters of each group, by its pattern.
        threads: on how many threads kernels run, and who says so; empty if none run.
    """

    entries: list[PlanEntry]
    groups: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    threads: str = ""

    def left_to(self, kernel: str) -> Plan:
        """The same state, stepped by something that isostep knows no bytes of."""
        entries = [replace(e, kernel=kernel, step_bytes=0, staged=False) for e in self.entries]
        return Plan(entries, self.groups)

    @property
    def state_bytes(self) -> int:
        """Bytes of all slots, averages and master copies."""
        return sum(e.state_bytes for e in self.entries)

    @property
    def step_bytes(self) -> int:
        """Bytes that one step moves through memory, each pass's reads and writes counted once."""
        return sum(e.step_bytes for e in self.entries)

    @property
    def kernels(self) -> list[str]:
        """The kernels that will run, each once."""
        return list(dict.fromkeys(e.kernel for e in self.entries))

    def table(self) -> Table:
        """The plan as a table."""
        rows = [
            [
                e.name,
                "x".join(map(str, e.shape)) or "scalar",
                e.dtype,
                e.group,
                " ".join(
                    f"{slot}[{'x'.join(map(str, shape)) or 'scalar'}:{dtype}]"
                    for slot, (shape, dtype) in e.slots.items()
                )
                or "-",
                f"{e.state_bytes:,}",
                f"{e.step_bytes:,}",
                e.kernel + (", staged" if e.staged else ""),
            ]
            for e in self.entries
        ]
        columns = ["parameter", "shape", "dtype", "group", "slots", "state B", "step B", "kernel"]
        notes = [f"state {self.state_bytes:,} B; moved by a step {self.step_bytes:,} B"]
        notes += [f"kernels run on {self.threads}"] * bool(self.threads)
        notes += [
            f"group {name}: " + ", ".join(f"{k}={v}" for k, v in values.items())
            for name, values in self.groups.items()
        ]
        return Table("", columns, rows, notes)

    def __str__(self) -> str:
        return str(self.table())
