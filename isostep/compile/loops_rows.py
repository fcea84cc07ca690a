"""The loops of the rows layout: some rows of one matrix, with the vector unit along a row.

Sums per column are kept for each chunk in float64; a second function adds them up when all rows of
a matrix are done.
"""

from __future__ import annotations

from isostep.compile.layout import COLUMN_TASK, ROWS_CHUNK
from isostep.compile.pass_writer import CONTEXT, PassWriter
from isostep.compile.trace import Symbol


class RowsWriter(PassWriter):
    """Writes a pass over rows of matrices."""

    def write(self) -> None:
        w = self.w
        self._function(f"pass_{self.number}", "chunks", ROWS_CHUNK)
        self._bind_reduced()
        self._matrix_values()
        self._zero("tensor")
        if self._sums("column"):
            self._bind_column_sums()
            with w.block(f"for j in range(columns * {len(self._sums('column'))}):"):
                w.line("sums[j] = 0.0")
        with w.block("for i in range(first_row, end_row):"):
            self._row()
        self._keep_tensor_sums()
        self._end()
        if self._sums("column"):
            self._columns_function()

    def _bind_reduced(self) -> None:
        for name in self._names_of("row"):
            self._array(name, "batch * rows")
        for name in self._names_of("column"):
            self._array(name, "batch * columns")

    def _bind_column_sums(self) -> None:
        address = f"tables[{CONTEXT.index('column_sums')}]"
        self.w.line(f"sums = float64_at({address} + 8 * sums_offset)")

    def _matrix_values(self) -> None:
        w = self.w
        for node, array, over in self._matrix_sums():
            total = f"{self._name(node)}_sum"
            w.line(f"{total} = 0.0")
            with w.block(f"for k in range({over}):"):
                w.line(f"{total} = accumulate({total}, float64({self._load(array, 'k')}))")
            self._reduced(node, total, over)
        self._matrix_rest()

    def _row(self) -> None:
        for name in self._element_names():
            self._array(name, "(batch * rows + i) * columns")
        for node, name in self._given("row"):
            self.w.line(f"{self._name(node)} = {self._load(name, 'i')}")
        for node in self._nodes("row"):
            self._assign(node)
        self._zero("row")
        with self._sweep("j", "columns", "row", "tensor"):
            for node, name in self._given("column"):
                self.w.line(f"{self._name(node)} = {self._load(name, 'j')}")
            for node in self._nodes("column"):
                self._assign(node)
            self._body("j")
            self._accumulate("row", "tensor")
            for k, r in enumerate(self._sums("column")):
                place = f"sums[{k} * columns + j]"
                self.w.line(f"{place} = {place} + float64({self._operand(r.args[0])})")
        for r in self._sums("row"):
            self._reduced(r, f"{self._name(r)}_sum", "columns")
        self._conclude("row", "i")

    def _reduced(self, node: Symbol, total: str, count: str) -> None:
        """The sum itself or the mean, from a float64 total."""
        value = total if node.op == "sum" else f"{total} / {count}"
        self.w.line(f"{self._name(node)} = {self._narrow(value)}")

    def _columns_function(self) -> None:
        w, sums = self.w, self._sums("column")
        self._function(f"columns_{self.number}", "tasks", COLUMN_TASK)
        self._bind_reduced()
        self._bind_column_sums()
        with w.block("for j in range(columns):"):
            self._zero("column")
            with w.block("for part in range(parts):"):
                for k, r in enumerate(sums):
                    place = f"(part * {len(sums)} + {k}) * columns + j"
                    w.line(f"{self._name(r)}_sum = {self._name(r)}_sum + sums[{place}]")
            for r in sums:
                self._reduced(r, f"{self._name(r)}_sum", "rows")
            self._conclude("column", "j")
        self._end()
