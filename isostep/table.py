"""A small table of text: what plans, reports and differences return, for people and for machines."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """Rows under named columns; `str()` aligns them.

    Args:
        title: the line above; may be empty.
        columns: the heads.
        rows: cells, as many as columns.
        notes: lines below.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        widths = [
            max(len(cell) for cell in cells)
            for cells in zip(self.columns, *self.rows, strict=True)
        ]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [self.columns, ["-" * width for width in widths], *self.rows]
        ]
        return "\n".join([*([self.title] if self.title else []), *lines, *self.notes])
