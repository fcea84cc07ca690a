"""A small table of text, which plans, reports and differences return to people and machines."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field

_CELL_WIDTH = 60


@dataclass(frozen=True)
class Table:
    """Rows under named columns; `str()` aligns them and wraps long cells.

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
        lines = [self.title] if self.title else []
        cells = [[textwrap.wrap(c, _CELL_WIDTH) or [""] for c in row] for row in self.rows]
        widths = [
            max([len(head), *(len(line) for row in cells for line in row[k])])
            for k, head in enumerate(self.columns)
        ]
        lines += [_line(self.columns, widths), _line(["-" * w for w in widths], widths)]
        for row in cells:
            lines += [_line(part, widths) for part in itertools.zip_longest(*row, fillvalue="")]
        return "\n".join([*lines, *self.notes])


def _line(cells: Iterable[str], widths: list[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return "  ".join(padded).rstrip()
