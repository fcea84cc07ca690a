"""Writing one pass: how values are named, loaded, computed, summed and stored.

The layouts share all of this and differ in their loops, each in a module of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field

from isostep.compile.arrays import DTYPE_BYTES, Array, compute_dtype
from isostep.compile.layout import SUM_BLOCK
from isostep.compile.schedule import Pass
from isostep.compile.trace import Symbol

CONTEXT = ("chunks", "arrays", "shapes", "scalars", "tensor_sums", "column_sums", "tasks")
"""The tables whose addresses a kernel finds at its `context`, eight bytes each."""
FLUSHING = len(CONTEXT)
"""The place of the word behind them, which says whether denormal numbers are flushed: 1 or 0."""

_OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "gt": ">", "ge": ">="}
_FUNCTIONS = {
    "sqrt": "sqrt",
    "abs": "absolute",
    "sign": "sign",
    "isfinite": "isfinite",
    "maximum": "maximum",
    "minimum": "minimum",
    "where": "select",
}


@dataclass
class SourceWriter:
    lines: list[str] = field(default_factory=list[str])
    depth: int = 0

    def line(self, text: str = "") -> None:
        self.lines.append("    " * self.depth + text if text else "")

    def block(self, head: str) -> _Indented:
        self.line(head)
        return _Indented(self)


@dataclass
class _Indented:
    writer: SourceWriter

    def __enter__(self) -> None:
        self.writer.depth += 1

    def __exit__(self, *_: object) -> None:
        self.writer.depth -= 1


class PassWriter:
    """What the writers of all layouts share.

    Args:
        w: where the source goes.
        step: the pass.
        arrays: the columns of the address table.
        number, count: which pass it is, of how many.
    """

    def __init__(
        self,
        w: SourceWriter,
        step: Pass,
        arrays: list[Array],
        number: int,
        count: int,
    ) -> None:
        self.w, self.step = w, step
        self.number, self.count = number, count
        self.dtypes = {a.name: a.dtype for a in arrays}
        self.columns = {a.name: k for k, a in enumerate(arrays)}
        self.compute = compute_dtype(arrays)
        self.late = _late_nodes(step)
        self.names = {id(node): f"new_{name}" for name, node in step.stores.items()}
        self.inlined = self._inlined()

    def write(self) -> None:
        """Write the functions of this pass."""
        raise NotImplementedError

    @property
    def scratch(self) -> int:
        """Bytes of memory of its own that each call of the pass needs."""
        return 0

    def _function(
        self, name: str, table: str, words: tuple[str, ...], given: str = "low, high"
    ) -> None:
        w = self.w
        w.line()
        w.line()
        w.line(f"def {name}({given}, context):")
        w.depth += 1
        reads = sorted({n.name for n in self.step.inputs if not n.is_host})
        w.line(f'"""Pass {self.number + 1} of {self.count}: reads {", ".join(reads) or "nothing"};')
        w.line(f'writes {", ".join(self.step.stores) or "sums only"}."""')
        w.line("tables = int64_at(context)")
        w.line(f"table = int64_at(tables[{CONTEXT.index(table)}])")
        w.line(f"arrays = int64_at(tables[{CONTEXT.index('arrays')}])")
        w.line(f"shapes = int64_at(tables[{CONTEXT.index('shapes')}])")
        w.line(f"scalars = {self.compute}_at(tables[{CONTEXT.index('scalars')}])")
        w.line(f"tensor_sums = float64_at(tables[{CONTEXT.index('tensor_sums')}])")
        w.line("for chunk in range(low, high):")
        w.depth += 1
        for k, word in enumerate(words):
            w.line(f"{word} = table[chunk * {len(words)} + {k}]")
        if "batch" in words:
            w.line("rows, columns = shapes[tensor * 2], shapes[tensor * 2 + 1]")
        for k, node in enumerate(self.step.scalars):
            w.line(f"{self._name(node)} = scalars[tensor * {len(self.step.scalars)} + {k}]")

    def _end(self) -> None:
        self.w.depth = 0

    def _array(self, name: str, offset: str) -> None:
        """Point at this tensor's array from an element offset on."""
        dtype = self.dtypes[name]
        address = f"arrays[tensor * {len(self.columns)} + {self.columns[name]}]"
        self.w.line(f"{name}_at = {dtype}_at({address} + {DTYPE_BYTES[dtype]} * {offset})")

    def _load(self, name: str, index: str) -> str:
        dtype = self.dtypes[name]
        value = f"{name}_at[{index}]"
        if dtype in ("float16", "bfloat16"):
            value = f"from_{dtype}({value})"
            dtype = "float32"
        if dtype == self.compute:
            return value
        return f"widen({value})" if self.compute == "float64" else f"narrow({value})"

    def _store(self, name: str, index: str, value: str) -> None:
        dtype = self.dtypes[name]
        if self.compute == "float64" and dtype != "float64":
            value = f"narrow({value})"
        elif self.compute == "float32" and dtype == "float64":
            value = f"widen({value})"
        if dtype in ("float16", "bfloat16"):
            value = f"to_{dtype}({value})"
        self.w.line(f"{name}_at[{index}] = {value}")

    def _inlined(self) -> set[Symbol]:
        """Values that stand inside the one expression that uses them, for the reader's sake."""
        users: dict[Symbol, list[Symbol]] = {}
        for node in self.step.nodes:
            for arg in node.args:
                users.setdefault(arg, []).append(node)
        outputs = {id(s) for s in self.step.stores.values()}
        return {
            node
            for node in self.step.nodes
            if node.op not in ("sum", "mean")
            and id(node) not in outputs
            and len(users.get(node, [])) == 1
            and users[node][0].op not in ("sum", "mean")
            and users[node][0].domain == node.domain
            and (users[node][0] in self.late) == (node in self.late)
        }

    def _name(self, node: Symbol) -> str:
        if node.op == "input":
            return f"c_{node.name}" if node.is_host else node.name
        return self.names.get(id(node), f"v{node.index}")

    def _operand(self, node: Symbol, nested: bool = True) -> str:
        if node.op == "constant":
            return f"{self.compute}({node.value!r})"
        return self._expression(node, nested) if node in self.inlined else self._name(node)

    def _expression(self, node: Symbol, nested: bool = False) -> str:
        if node.op == "after":
            return self._operand(node.args[0], nested)
        args = [self._operand(a, nested=node.op not in _FUNCTIONS) for a in node.args]
        if node.op in _FUNCTIONS:
            return f"{_FUNCTIONS[node.op]}({', '.join(args)})"
        text = f"-{args[0]}" if node.op == "neg" else f" {_OPERATORS[node.op]} ".join(args)
        return f"({text})" if nested else text

    def _assign(self, node: Symbol) -> None:
        if node not in self.inlined:
            self.w.line(f"{self._name(node)} = {self._expression(node)}")

    def _nodes(self, domain: str, late: bool = False) -> Iterable[Symbol]:
        return (
            n
            for n in self.step.nodes
            if n.domain == domain and n not in self.step.reductions and (n in self.late) == late
        )

    def _given(self, domain: str, late: bool = False) -> list[tuple[Symbol, str]]:
        """Arrays of `domain` that are read (at the end of a row or column), as (node, array)."""
        given = [(n, n.name) for n in self.step.inputs] + list(self.step.carried.items())
        if late:
            read = {a for n in self._concluding(domain) for a in n.args}
        else:
            read = {a for n in self.step.nodes for a in n.args if n not in self.late}
            read |= {*self.step.stores.values(), *self.step.carried}
        return [(n, name) for n, name in given if n.domain == domain and n in read]

    def _concluding(self, domain: str) -> list[Symbol]:
        """What is computed at the end of a row or column: what its sums decide, and what else that
        takes; a value that elements read too is computed again."""
        needed: set[Symbol] = set()
        found: list[Symbol] = []
        for node in reversed(self.step.nodes):
            own = node.domain == domain and node not in self.step.reductions
            if own and (node in self.late or node in needed):
                found.append(node)
                needed.update(node.args)
        return found[::-1]

    def _stores(self, domain: str) -> list[tuple[str, Symbol]]:
        return [(n, s) for n, s in self.step.stores.items() if s.domain == domain]

    def _sums(self, domain: str) -> list[Symbol]:
        return [r for r in self.step.reductions if r.domain == domain]

    def _narrow(self, value: str) -> str:
        return value if self.compute == "float64" else f"narrow({value})"

    def _zero(self, domain: str) -> None:
        for r in self._sums(domain):
            self.w.line(f"{self._name(r)}_sum = 0.0")

    @contextlib.contextmanager
    def _parts(self, *domains: str) -> Generator[None]:
        """Around a short loop: what it sums goes to a part in the dtype of the arithmetic, which
        keeps the loop at the full width of the vector unit, and from there to a float64 sum."""
        sums = [self._name(r) for domain in domains for r in self._sums(domain)]
        for name in sums:
            self.w.line(f"{name}_part = {self.compute}(0.0)")
        yield
        for name in sums:
            self.w.line(f"{name}_sum = {name}_sum + float64({name}_part)")

    def _accumulate(self, *domains: str) -> None:
        for r in (r for domain in domains for r in self._sums(domain)):
            part = f"{self._name(r)}_part"
            self.w.line(f"{part} = accumulate({part}, {self._operand(r.args[0], nested=False)})")

    def _sweep(self, index: str, length: str, *domains: str) -> contextlib.ExitStack:
        """The innermost loop; where it sums over `domains`, it is cut into short blocks."""
        inside = contextlib.ExitStack()
        if not any(self._sums(domain) for domain in domains):
            inside.enter_context(self.w.block(f"for {index} in range({length}):"))
            return inside
        inside.enter_context(self.w.block(f"for start in range(0, {length}, {SUM_BLOCK}):"))
        inside.enter_context(self._parts(*domains))
        end = f"min(start + {SUM_BLOCK}, {length})"
        inside.enter_context(self.w.block(f"for {index} in range(start, {end}):"))
        return inside

    def _keep_tensor_sums(self) -> None:
        sums = self._sums("tensor")
        for k, r in enumerate(sums):
            self.w.line(f"tensor_sums[chunk * {len(sums)} + {k}] = {self._name(r)}_sum")

    def _element_names(self) -> list[str]:
        names = [name for _, name in self._given("element")]
        return list(dict.fromkeys([*names, *(name for name, _ in self._stores("element"))]))

    def _body(self, index: str) -> None:
        for node, name in self._given("element"):
            self.w.line(f"{self._name(node)} = {self._load(name, index)}")
        for node in self._nodes("element"):
            self._assign(node)
        for name, node in self._stores("element"):
            self._store(name, index, self._operand(node))

    def _names_of(self, domain: str) -> list[str]:
        """The arrays of `domain` that this pass reads or writes."""
        given = self._given(domain) + self._given(domain, late=True)
        names = [name for _, name in given] + [name for name, _ in self._stores(domain)]
        names += [name for n, name, _ in self._matrix_sums() if n.args[0].domain == domain]
        return list(dict.fromkeys(names))

    def _matrix_sums(self) -> list[tuple[Symbol, str, str]]:
        """Sums and means over a row or column array: (node, array, what it runs over)."""
        found: list[tuple[Symbol, str, str]] = []
        for node in self._nodes("matrix"):
            if node.op in ("sum", "mean"):
                source = node.args[0]
                array = self.step.carried.get(source, source.name)
                if not array:
                    raise ValueError(
                        f"a {node.op} per matrix of a computed value per {source.domain}: return "
                        f"that value as a slot of the rule, and take the {node.op} of the slot"
                    )
                found.append((node, array, {"row": "rows", "column": "columns"}[source.domain]))
        return found

    def _matrix_rest(self) -> None:
        """Values per matrix that follow from its sums."""
        for node in self._nodes("matrix"):
            if node.op not in ("sum", "mean"):
                self._assign(node)

    def _conclude(self, domain: str, index: str) -> None:
        for node, name in self._given(domain, late=True):
            self.w.line(f"{self._name(node)} = {self._load(name, index)}")
        for node in self._concluding(domain):
            self._assign(node)
        for name, node in self._stores(domain):
            self._store(name, index, self._operand(node))


def _late_nodes(step: Pass) -> set[Symbol]:
    """Row and column values that are known only at the end of their row or column."""
    late: set[Symbol] = set()
    for node in step.nodes:
        follows = any(a in late and a.domain == node.domain for a in node.args)
        if node.domain in ("row", "column") and (node in step.reductions or follows):
            late.add(node)
    return late
