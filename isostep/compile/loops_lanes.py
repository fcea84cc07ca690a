"""The loops of the lanes layout: many small matrices, with the vector unit across them.

A block of matrices is brought into an order in which the same element of all of them lies side by
side, worked on there, and brought back. All matrices of a cohort have one shape, which stands in
the source as numbers: the loops over rows and columns unroll.
"""

from __future__ import annotations

from collections.abc import Iterable

from isostep.compile.arrays import DTYPE_BYTES
from isostep.compile.layout import ALIGNMENT, LANES, LANES_CHUNK, SHORT_MATRIX
from isostep.compile.pass_writer import PassWriter
from isostep.compile.trace import Symbol


class LanesWriter(PassWriter):
    """Writes a pass over blocks of small matrices."""

    def write(self) -> None:
        w = self.w
        self._function(f"pass_{self.number}", "chunks", LANES_CHUNK, "low, high, scratch")
        w.line("rows, columns = shapes[tensor * 2], shapes[tensor * 2 + 1]")
        w.line("size = rows * columns")
        for name in [*self._element_names(), *self._names_of("row"), *self._names_of("column")]:
            self._array(name, "0")
        self._divide_scratch()
        self._zero("tensor")
        with w.block(f"for block in range(first_batch, end_batch, {LANES}):"):
            w.line(f"lanes = min({LANES}, end_batch - block)")
            for _, name in self._given("element"):
                self._stage(name, "size")
            for _, name in self._given("column"):
                self._stage(name, "columns")
            self._matrix_values()
            for r in self._sums("column"):
                self._zero_lanes(f"{self._name(r)}_sums", "columns")
            with w.block("for i in range(rows):"):
                self._row()
            if self._sums("column"):
                with w.block("for j in range(columns):"), w.block("for lane in range(lanes):"):
                    self._finish("column", f"j * {LANES} + lane", "rows")
                    self._conclude("column", "(block + lane) * columns + j")
            for name, _ in self._stores("element"):
                self._unstage(name, "size")
        self._keep_tensor_sums()
        self._end()

    @property
    def scratch(self) -> int:
        return sum(self._aligned(length) for length in self._room().values())

    def _divide_scratch(self) -> None:
        """Point at each array in the scratch memory."""
        offset = 0
        for name, length in self._room().items():
            self.w.line(f"{name} = {self.compute}_scratch(scratch + {offset})")
            offset += self._aligned(length)

    def _aligned(self, length: int) -> int:
        """Bytes of an array of this length, up to where the next may begin."""
        return -(-length * DTYPE_BYTES[self.compute] // ALIGNMENT) * ALIGNMENT

    def _room(self) -> dict[str, int]:
        """Arrays in the dtype of the arithmetic with the lanes side by side, and their lengths.

        They do not lie on the stack: tens of kilobytes each, they are more than a small one has.
        """
        blocks = [name for _, name in (*self._given("element"), *self._given("column"))]
        blocks += [name for name, _ in self._stores("element")]
        room = {f"{name}_block": SHORT_MATRIX * LANES for name in blocks}
        kept = [*self._kept_per_matrix(), *self._kept_per_row()]
        room |= {f"{self._name(node)}_lanes": LANES for node in kept}
        room |= {f"{self._name(r)}_sums": LANES for r in self._sums("row")}
        return room | {f"{self._name(r)}_sums": SHORT_MATRIX * LANES for r in self._sums("column")}

    def _kept_per_row(self) -> list[Symbol]:
        """Values per row that elements read."""
        read = {id(a) for n in self.step.nodes if n.domain == "element" for a in n.args}
        values = [node for node, _ in self._given("row")] + list(self._nodes("row"))
        return [node for node in values if id(node) in read]

    def _kept_per_matrix(self) -> list[Symbol]:
        return [n for n in self._nodes("matrix") if n not in self.inlined]

    def _stage(self, name: str, size: str) -> None:
        w = self.w
        with w.block("for lane in range(lanes):"), w.block(f"for k in range({size}):"):
            value = self._load(name, f"(block + lane) * {size} + k")
            w.line(f"{name}_block[k * {LANES} + lane] = {value}")

    def _unstage(self, name: str, size: str) -> None:
        w = self.w
        with w.block("for lane in range(lanes):"), w.block(f"for k in range({size}):"):
            index = f"(block + lane) * {size} + k"
            self._store(name, index, f"{name}_block[k * {LANES} + lane]")

    def _zero_lanes(self, name: str, count: str) -> None:
        with self.w.block(f"for k in range({count} * {LANES}):"):
            self.w.line(f"{name}[k] = {self.compute}(0.0)")

    def _matrix_values(self) -> None:
        w, sums = self.w, self._matrix_sums()
        for node, array, over in sums:
            lanes = f"{self._name(node)}_lanes"
            self._zero_lanes(lanes, "1")
            with w.block(f"for k in range({over}):"), w.block("for lane in range(lanes):"):
                value = self._load(array, f"(block + lane) * {over} + k")
                w.line(f"{lanes}[lane] = {lanes}[lane] + {value}")
        if not sums:
            return
        with w.block("for lane in range(lanes):"):
            for node, _, over in sums:
                self._reduced(node, f"{self._name(node)}_lanes[lane]", over)
            self._matrix_rest()
            for node in self._kept_per_matrix():
                w.line(f"{self._name(node)}_lanes[lane] = {self._name(node)}")

    def _row(self) -> None:
        w = self.w
        if self._kept_per_row():
            with w.block("for lane in range(lanes):"):
                self._recall(self._kept_per_matrix())
                for node, name in self._given("row"):
                    w.line(f"{self._name(node)} = {self._load(name, '(block + lane) * rows + i')}")
                for node in self._nodes("row"):
                    self._assign(node)
                for node in self._kept_per_row():
                    w.line(f"{self._name(node)}_lanes[lane] = {self._name(node)}")
        for r in self._sums("row"):
            self._zero_lanes(f"{self._name(r)}_sums", "1")
        with (
            w.block("for j in range(columns):"),
            self._parts("tensor"),
            w.block("for lane in range(lanes):"),
        ):
            self._elements()
        if self._sums("row"):
            with w.block("for lane in range(lanes):"):
                self._finish("row", "lane", "columns")
                self._conclude("row", "(block + lane) * rows + i")

    def _elements(self) -> None:
        w, place = self.w, f"(i * columns + j) * {LANES} + lane"
        self._recall([*self._kept_per_matrix(), *self._kept_per_row()])
        for node, name in self._given("column"):
            w.line(f"{self._name(node)} = {name}_block[j * {LANES} + lane]")
        for node in self._nodes("column"):
            self._assign(node)
        for node, name in self._given("element"):
            w.line(f"{self._name(node)} = {name}_block[{place}]")
        for node in self._nodes("element"):
            self._assign(node)
        for name, node in self._stores("element"):
            w.line(f"{name}_block[{place}] = {self._operand(node)}")
        for domain, lane in (("row", "lane"), ("column", f"j * {LANES} + lane")):
            for r in self._sums(domain):
                total = f"{self._name(r)}_sums[{lane}]"
                w.line(f"{total} = {total} + {self._operand(r.args[0])}")
        self._accumulate("tensor")

    def _recall(self, nodes: Iterable[Symbol]) -> None:
        for node in nodes:
            self.w.line(f"{self._name(node)} = {self._name(node)}_lanes[lane]")

    def _finish(self, domain: str, lane: str, count: str) -> None:
        for r in self._sums(domain):
            self._reduced(r, f"{self._name(r)}_sums[{lane}]", count)

    def _reduced(self, node: Symbol, total: str, count: str) -> None:
        """The sum itself or the mean; a short row needs no float64."""
        value = total if node.op == "sum" else f"{total} / {self.compute}({count})"
        self.w.line(f"{self._name(node)} = {value}")
