"""Running a recipe on symbols: what comes out is a graph of what a step computes.

Each node knows its *domain*, how much of a tensor shares one value:

    step < tensor < matrix < row, column < element

Operators broadcast upward (row with column gives element); reductions lead down. A tensor with a
matrix structure is seen as (batch, rows, columns): a row is one (batch, row), a matrix one batch.
Equal expressions become one node, so the generated code computes nothing twice in one pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Domain = Literal["step", "tensor", "matrix", "row", "column", "element"]
Matrices = Literal["plain", "transposed", "single"]
"""How a graph sees the matrices of its caller: as they are; with their rows as its columns; or, if
each is a single element, as elements, which are their own rows, columns, sums and means."""

_RANK: dict[str, int] = {"step": 0, "tensor": 1, "matrix": 2, "row": 3, "column": 3, "element": 4}

_SEEN: dict[Matrices, dict[Domain, Domain]] = {
    "plain": {},
    "transposed": {"row": "column", "column": "row"},
    "single": {"row": "element", "column": "element", "matrix": "element"},
}

REDUCTIONS: frozenset[tuple[str, str]] = frozenset(
    {
        ("element", "row"),
        ("element", "column"),
        ("element", "tensor"),
        ("tensor", "step"),
        ("row", "matrix"),
        ("column", "matrix"),
    }
)
"""The reductions (from, to) that the schedule knows how to place."""


def join(a: Domain, b: Domain) -> Domain:
    """The domain of an operation between `a` and `b`."""
    if _RANK[a] == _RANK[b]:
        return a if a == b else "element"
    return a if _RANK[a] > _RANK[b] else b


@dataclass(frozen=True, eq=False)
class Symbol:
    """A node of the graph: an input, a constant, an operation or a reduction.

    Args:
        op: `"input"`, `"constant"`, `"sum"`, `"mean"`, or the name of an elementwise operation.
        args: what it is computed from.
        domain: how much of a tensor shares one value.
        name: of an input: the coefficient or array it stands for.
        value: of a constant.
        index: place in the order of creation, which is an order of evaluation.
    """

    graph: Graph = field(repr=False)
    op: str
    args: tuple[Symbol, ...]
    domain: Domain
    name: str = ""
    value: float = 0.0
    index: int = 0

    @property
    def is_host(self) -> bool:
        """Whether the value is one number per tensor or step, which the host computes."""
        return _RANK[self.domain] <= 1

    def __add__(self, other: Any) -> Symbol:
        return self.graph.apply("add", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return self.graph.apply("add", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return self.graph.apply("sub", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return self.graph.apply("sub", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return self.graph.apply("mul", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return self.graph.apply("mul", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return self.graph.apply("div", self, other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return self.graph.apply("div", other, self)

    def __neg__(self) -> Symbol:
        return self.graph.apply("neg", self)

    def __gt__(self, other: Any) -> Symbol:
        return self.graph.apply("gt", self, other)

    def __ge__(self, other: Any) -> Symbol:
        return self.graph.apply("ge", self, other)

    def __lt__(self, other: Any) -> Symbol:
        return self.graph.apply("gt", other, self)

    def __le__(self, other: Any) -> Symbol:
        return self.graph.apply("ge", other, self)

    def __bool__(self) -> bool:
        raise TypeError(
            "a traced value has no truth value: decide with xp.where(condition, a, b), "
            "or with a Python `if` on a switch of the rule"
        )


@dataclass
class Graph:
    """The nodes of one traced step, in an order in which they can be evaluated.

    Args:
        recomputes: what two passes need is computed in both of them, as kernels do, and not kept
            from one to the other, as compilers of arrays prefer.
        matrices: how it sees the caller's.
    """

    recomputes: bool = True
    matrices: Matrices = "plain"
    nodes: list[Symbol] = field(default_factory=list["Symbol"])
    _known: dict[tuple[Any, ...], Symbol] = field(
        default_factory=dict[tuple[Any, ...], "Symbol"], repr=False
    )

    def input(self, name: str, domain: Domain) -> Symbol:
        """An array or coefficient that is given from outside."""
        return self._node("input", (), self._seen(domain), name=name)

    def constant(self, value: float) -> Symbol:
        """A number written in the text of a rule or recipe."""
        return self._node("constant", (), "step", value=float(value))

    def apply(self, op: str, *operands: Any) -> Symbol:
        """An elementwise operation; plain numbers become constants.

        A sign moves outwards until a subtraction takes it up, which rounds no differently: rules
        may say `-step` and pay no operation for it. The square of a quotient by a root needs no
        root.
        """
        args = tuple(x if isinstance(x, Symbol) else self.constant(x) for x in operands)
        if op in ("add", "mul", "div"):
            a, b = args
            if op == "add" and b.op == "neg":
                return self.apply("sub", a, b.args[0])
            if op == "add" and a.op == "neg":
                return self.apply("sub", b, a.args[0])
            if op != "add" and a.op == "neg":
                return self.apply("neg", self.apply(op, a.args[0], b))
            if op == "mul" and a is b and _over_root(a) and self.recomputes:
                top, root = a.args
                return self.apply("div", self.apply("mul", top, top), root.args[0])
        domain: Domain = "step"
        for arg in args:
            domain = join(domain, arg.domain)
        return self._node(op, args, domain)

    def reduce(self, op: Literal["sum", "mean"], x: Any, per: Domain, name: str = "") -> Symbol:
        """A sum or mean of `x` over everything that shares one `per`, and `name` if it is given."""
        seen = self._seen(per)
        if isinstance(x, Symbol) and x.domain == seen == "element" != per:
            return x  # of the one element of a matrix
        per = seen
        if op == "sum" and per == "step" and isinstance(x, Symbol) and x.domain == "element":
            x = self.reduce("sum", x, "tensor")
        if not isinstance(x, Symbol) or (x.domain, per) not in REDUCTIONS:
            source = x.domain if isinstance(x, Symbol) else type(x).__name__
            allowed = ", ".join(f"{a} to {b}" for a, b in sorted(REDUCTIONS))
            raise ValueError(f"cannot reduce from {source} to {per}; possible are {allowed}")
        return self._node(op, (x,), per, name)

    def _seen(self, domain: Domain) -> Domain:
        return _SEEN[self.matrices].get(domain, domain)

    def _node(
        self,
        op: str,
        args: tuple[Symbol, ...],
        domain: Domain,
        name: str = "",
        value: float = 0.0,
    ) -> Symbol:
        # repr tells 0.0 from -0.0 and makes NaN equal to itself
        key = (op, tuple(id(a) for a in args), domain, name, repr(value))
        if key not in self._known:
            node = Symbol(self, op, args, domain, name, value, len(self.nodes))
            self.nodes.append(node)
            self._known[key] = node
        return self._known[key]


def _over_root(x: Symbol) -> bool:
    return x.op == "div" and x.args[1].op == "sqrt"


@dataclass(frozen=True)
class SymbolNamespace:
    """The `xp` that a recipe and a rule see while they are traced.

    Args:
        graph: what it writes.
        complex: parameters are complex. Only namespaces of array libraries have the operation
            `inner`; that of real numbers is a product, in which kernels see nothing new.
    """

    graph: Graph
    complex: bool = False

    def inner(self, x: Any, y: Any, /) -> Symbol:
        """The real part of `x` times the conjugate of `y`."""
        return self.graph.apply("inner" if self.complex else "mul", x, y)

    def sqrt(self, x: Any, /) -> Symbol:
        return self.graph.apply("sqrt", x)

    def abs(self, x: Any, /) -> Symbol:
        return self.graph.apply("abs", x)

    def sign(self, x: Any, /) -> Symbol:
        return self.graph.apply("sign", x)

    def isfinite(self, x: Any, /) -> Symbol:
        """1 where `x` is finite, 0 where it is infinite or NaN."""
        return self.graph.apply("isfinite", x)

    def maximum(self, x: Any, y: Any, /) -> Symbol:
        return self.graph.apply("maximum", x, y)

    def minimum(self, x: Any, y: Any, /) -> Symbol:
        return self.graph.apply("minimum", x, y)

    def where(self, condition: Any, x: Any, y: Any, /) -> Symbol:
        return self.graph.apply("where", condition, x, y)

    def mean(self, x: Any, *, per: Domain) -> Symbol:
        return self.graph.reduce("mean", x, per)

    def sum(self, x: Any, *, per: Domain, name: str = "") -> Symbol:
        """A sum; one per step is over all tensors whose recipes have a sum of this name."""
        return self.graph.reduce("sum", x, per, name)

    def after(self, x: Any, decided: Any, /) -> Symbol:
        """`x`, but not before `decided` is known: nothing computed from it runs in a step that
        `decided` stops."""
        return self.graph.apply("after", x, decided)


def ancestors(roots: list[Symbol]) -> Iterator[Symbol]:
    """All nodes that `roots` need, themselves included, each once, in order of evaluation."""
    seen: set[int] = set()
    stack = list(roots)
    found: list[Symbol] = []
    while stack:
        node = stack.pop()
        if node.index not in seen:
            seen.add(node.index)
            found.append(node)
            stack.extend(node.args)
    return iter(sorted(found, key=lambda n: n.index))
