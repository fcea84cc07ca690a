"""Cutting a graph into passes at its reductions.

A pass is one sweep over the elements of all tensors. A reduction ends the pass that feeds it: its
result is a small array which the next pass reads. Per-tensor and per-step values in between are
computed on the host, for all tensors at once; on a mesh this is where partial sums are combined.
An element value that two passes need is computed again, not stored, so a pass reads and writes each
array at most once. Slots and parameters are written in the last pass, per-row and per-column slots
in the pass that completes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from isostep.compile.trace import Graph, Symbol, ancestors


@dataclass
class Pass:
    """What one sweep computes, in order of evaluation.

    Args:
        scalars: per-tensor and per-step values that it reads.
        nodes: what it computes, of all domains, without `scalars`, constants and inputs.
        inputs: arrays that it reads, by name.
        reductions: sums over elements (per row, column or tensor) that it completes.
        carried: per-row and per-column values of earlier passes that it reads, with the slot that
            holds each.
        stores: what it writes, by array name.
    """

    scalars: list[Symbol] = field(default_factory=list[Symbol])
    nodes: list[Symbol] = field(default_factory=list[Symbol])
    inputs: list[Symbol] = field(default_factory=list[Symbol])
    reductions: list[Symbol] = field(default_factory=list[Symbol])
    carried: dict[Symbol, str] = field(default_factory=dict[Symbol, str])
    stores: dict[str, Symbol] = field(default_factory=dict[str, Symbol])

    @property
    def moves(self) -> list[str]:
        """The arrays that it reads and those that it writes; one that it does both to stands
        twice."""
        reads = {n.name for n in self.inputs} | set(self.carried.values())
        return [*sorted(reads), *self.stores]

    @property
    def tensor_sums(self) -> list[Symbol]:
        """The reductions to one value per tensor, which the host completes."""
        return [r for r in self.reductions if r.domain == "tensor"]


@dataclass(eq=False)
class Schedule:
    """A graph cut into passes.

    Args:
        passes: in order of execution.
        inputs: coefficients that are read.
        constants: numbers that the host or a pass reads.
        step_sums: for each pass the sums over all tensors that must be known before it.
        host: for each pass the per-tensor and per-step values that the host computes before it, in
            order of evaluation.
        statistics: per-tensor sums by name, known after the last pass.
        blocked: the per-step count that stops the step if it is not zero; known after pass 0.
    """

    graph: Graph
    passes: list[Pass]
    inputs: list[Symbol]
    constants: list[Symbol]
    step_sums: list[list[Symbol]]
    host: list[list[Symbol]]
    statistics: dict[str, Symbol]
    blocked: Symbol | None


@dataclass(frozen=True)
class _Place:
    """When a node is computed: in which pass, and whether only at the end of its row or column."""

    number: int
    late: bool


def schedule(
    graph: Graph,
    stores: dict[str, Symbol],
    statistics: dict[str, Symbol],
    blocked: Symbol | None = None,
) -> Schedule:
    """Cut `graph` into passes.

    Args:
        graph: the nodes, in order of evaluation.
        stores: what is written, by array name.
        statistics: sums per tensor that are wanted besides.
        blocked: a sum per step that must be known before anything is written.

    Raises:
        ValueError: a per-row or per-column value is needed in a later pass and no slot holds it.
    """
    wanted = [*stores.values(), *([] if blocked is None else [blocked])]
    outputs = [*wanted, *statistics.values()]
    places = _place(graph)
    # A statistic that nothing waits for is measured in the last pass, which reads everything.
    waited = {id(n) for n in ancestors(wanted)}
    last = max(places[s].number for s in stores.values())
    late_sums = {s for s in statistics.values() if id(s) not in waited}
    last = max([last, *(places[s].number for s in late_sums)])

    reduced = {store: name for name, store in stores.items() if store.domain != "element"}
    needed = list(ancestors(outputs))
    passes: list[Pass] = []
    for number in range(last + 1):
        step = Pass()
        for name, store in stores.items():
            if number == (places[store].number if store in reduced else last):
                step.stores[name] = store
        step.reductions = [
            n
            for n in needed
            if n.op in ("sum", "mean")
            and n.args[0].domain == "element"
            and number == (last if n in late_sums else places[n].number)
        ]
        overwritten = {reduced[r] for r in reduced if places[r].number < number}
        _collect(step, number, places, reduced, overwritten)
        passes.append(step)
    return Schedule(
        graph,
        passes,
        inputs=[n for n in needed if n.op == "input" and n.is_host],
        constants=[n for n in needed if n.op == "constant"],
        step_sums=[
            [n for n in needed if n.op == "sum" and n.domain == "step" and places[n].number == k]
            for k in range(last + 1)
        ],
        host=[
            [
                n
                for n in needed
                if n.is_host
                and n.op not in ("input", "constant", "sum", "mean")
                and places[n].number == k
            ]
            for k in range(last + 1)
        ],
        statistics=statistics,
        blocked=blocked,
    )


def _place(graph: Graph) -> dict[Symbol, _Place]:
    places: dict[Symbol, _Place] = {}
    for node in graph.nodes:
        number, late = 0, node.op in ("sum", "mean") and node.args[0].domain == "element"
        for arg in node.args:
            place = places[arg]
            if not place.late:
                number = max(number, place.number)
            elif arg.domain == node.domain and not arg.is_host:
                # at the end of a row, values of the same row are at hand
                late = late or place.number >= number
                number = max(number, place.number)
            else:
                number = max(number, place.number + 1)
        if late and node.op not in ("sum", "mean"):
            late = any(places[a].late and places[a].number == number for a in node.args)
        places[node] = _Place(number, late)
    return places


def _collect(
    step: Pass,
    number: int,
    places: dict[Symbol, _Place],
    reduced: dict[Symbol, str],
    overwritten: set[str],
) -> None:
    """Fill in everything that the outputs of `step` need, down to what is given.

    Per-row and per-column values of earlier passes are read from their slots, or computed again
    from such; what an earlier pass has `overwritten` is gone.
    """
    found: dict[int, Symbol] = {}
    stack = [*step.stores.values(), *step.reductions]
    while stack:
        node = stack.pop()
        if node.index in found:
            continue
        found[node.index] = node
        place = places[node]
        earlier = place.late and place.number < number
        if node.op == "constant" or (node.is_host and node not in step.reductions):
            continue
        if earlier and node in reduced:
            step.carried[node] = reduced[node]
            continue
        lost = earlier and node.op in ("sum", "mean") and node.domain in ("row", "column")
        if lost or (node.op == "input" and node.name in overwritten):
            raise ValueError(
                f"a per-{node.domain} value is needed in a later pass: only a slot can carry "
                f"it there, so return it as a slot of the rule"
            )
        stack.extend(node.args)
    for node in sorted(found.values(), key=lambda n: n.index):
        if node.op == "constant" or node in step.carried:
            continue
        if node in step.reductions:
            step.nodes.append(node)
        elif node.is_host:
            step.scalars.append(node)
        elif node.op == "input":
            step.inputs.append(node)
        else:
            step.nodes.append(node)
