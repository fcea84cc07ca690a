"""The loops of the lanes layout: many small matrices, with the vector unit across them.

A block of matrices is brought into an order in which the same element of all of them lies side by
side, worked on there, and brought back (`staging`). The size of the matrices is read from the table
of shapes: one kernel serves all of a model.
"""

from __future__ import annotations

from collections.abc import Iterable

from isostep.compile.arrays import DTYPE_BYTES
from isostep.compile.layout import ALIGNMENT, LANES, LANES_CHUNK, SHORT_MATRIX
from isostep.compile.pass_writer import PassWriter
from isostep.compile.trace import Symbol

_EXTENTS = {"element": "size", "row": "rows", "column": "columns"}
"""How many elements of each matrix an array has."""


class LanesWriter(PassWriter):
    """Writes a pass over blocks of small matrices."""

    def write(self) -> None:
        w = self.w
        self._function(f"pass_{self.number}", "chunks", LANES_CHUNK, "low, high, scratch")
        w.line("rows, columns = shapes[tensor * 2], shapes[tensor * 2 + 1]")
        w.line("size = rows * columns")
        self._divide_scratch()
        self._zero("tensor")
        with w.block(f"for block in range(first_batch, end_batch, {LANES}):"):
            w.line(f"lanes = min({LANES}, end_batch - block)")
            self._move("stage", self._read())
            self._matrix_values()
            for r in self._sums("column"):
                self._zero_lanes(f"{self._name(r)}_sums", "columns")
            with w.block("for i in range(rows):"):
                self._row()
            if self._sums("column"):
                with w.block("for j in range(columns):"), w.block("for lane in range(lanes):"):
                    self._finish("column", _place("j"), "rows")
                    self._conclude("column", _place("j"))
            self._move("unstage", {n: s.domain for n, s in self.step.stores.items()})
        self._keep_tensor_sums()
        self._end()

    @property
    def scratch(self) -> int:
        return sum(_aligned(dtype, length) for dtype, length in self._room().values())

    def _read(self) -> dict[str, str]:
        """The arrays that this pass reads, and the domain of each."""
        found: dict[str, str] = {}
        for domain in ("element", "row", "column"):
            given = self._given(domain) + self._given(domain, late=True)
            found |= {name: domain for _, name in given}
        return found | {name: node.args[0].domain for node, name, _ in self._matrix_sums()}

    def _divide_scratch(self) -> None:
        """Point at each array in the scratch memory."""
        offset = 0
        for name, (dtype, length) in self._room().items():
            self.w.line(f"{name} = {dtype}_scratch(scratch + {offset})")
            offset += _aligned(dtype, length)

    def _room(self) -> dict[str, tuple[str, int]]:
        """Arrays with the lanes side by side: dtype and length of each.

        They do not lie on the stack: tens of kilobytes each, they are more than a small one has.
        """
        names = dict.fromkeys([*self._read(), *self.step.stores])
        room = {f"{name}_at": (self.dtypes[name], SHORT_MATRIX * LANES) for name in names}
        kept = [f"{self._name(n)}_lanes" for n in (*self._kept_per_matrix(), *self._kept_per_row())]
        kept += [f"{self._name(r)}_sums" for r in self._sums("row")]
        room |= dict.fromkeys(kept, (self.compute, LANES))
        sums = [f"{self._name(r)}_sums" for r in self._sums("column")]
        return room | dict.fromkeys(sums, (self.compute, SHORT_MATRIX * LANES))

    def _move(self, way: str, names: dict[str, str]) -> None:
        """Bring arrays, each of a domain, into the scratch memory or back."""
        for name, domain in names.items():
            width, extent = DTYPE_BYTES[self.dtypes[name]], _EXTENTS[domain]
            address = f"arrays[tensor * {len(self.columns)} + {self.columns[name]}]"
            memory = f"{address} + {width} * block * {extent}"
            self.w.line(f"{way}_{width}({memory}, {name}_at, {extent}, lanes)")

    def _kept_per_row(self) -> list[Symbol]:
        """Values per row that elements read."""
        read = {id(a) for n in self.step.nodes if n.domain == "element" for a in n.args}
        values = [node for node, _ in self._given("row")] + list(self._nodes("row"))
        return [node for node in values if id(node) in read]

    def _kept_per_matrix(self) -> list[Symbol]:
        return [n for n in self._nodes("matrix") if n not in self.inlined]

    def _zero_lanes(self, name: str, count: str) -> None:
        with self.w.block(f"for k in range({count} * {LANES}):"):
            self.w.line(f"{name}[k] = {self.compute}(0.0)")

    def _matrix_values(self) -> None:
        w, sums = self.w, self._matrix_sums()
        for node, array, over in sums:
            lanes = f"{self._name(node)}_lanes"
            self._zero_lanes(lanes, "1")
            with w.block(f"for k in range({over}):"), w.block("for lane in range(lanes):"):
                w.line(f"{lanes}[lane] = {lanes}[lane] + {self._load(array, _place('k'))}")
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
                    w.line(f"{self._name(node)} = {self._load(name, _place('i'))}")
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
                self._conclude("row", _place("i"))

    def _elements(self) -> None:
        self._recall([*self._kept_per_matrix(), *self._kept_per_row()])
        for node, name in self._given("column"):
            self.w.line(f"{self._name(node)} = {self._load(name, _place('j'))}")
        for node in self._nodes("column"):
            self._assign(node)
        self._body(_place("(i * columns + j)"))
        for domain, lane in (("row", "lane"), ("column", _place("j"))):
            for r in self._sums(domain):
                total = f"{self._name(r)}_sums[{lane}]"
                self.w.line(f"{total} = {total} + {self._operand(r.args[0])}")
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


def _place(element: str) -> str:
    """Where an element of this lane's matrix stands in the scratch memory."""
    return f"{element} * {LANES} + lane"


def _aligned(dtype: str, length: int) -> int:
    """Bytes up to where the next array may begin: a line further on than those of this one, since
    places that are a multiple of a page apart get into each other's way."""
    lines = -(-length * DTYPE_BYTES[dtype] // ALIGNMENT)
    return (lines + 1) * ALIGNMENT
