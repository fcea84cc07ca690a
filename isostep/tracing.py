"""Running a recipe on symbols, and the names of the arrays that it works on."""

from __future__ import annotations

import functools
from dataclasses import replace

from isostep.compile.schedule import Schedule, schedule
from isostep.compile.trace import Graph, Matrices, Symbol, SymbolNamespace
from isostep.recipe import Recipe, step


class _Coefficients:
    """Every coefficient that is asked for becomes an input of the graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def __getattr__(self, name: str) -> Symbol:
        return self._graph.input(name, "tensor")


@functools.cache
def trace(recipe: Recipe, recomputes: bool = True, matrices: Matrices = "plain") -> Schedule:
    """The passes of one step of `recipe`.

    Args:
        recipe: what is done.
        recomputes, matrices: as in `Graph`.
    """
    graph = Graph(recomputes, matrices)
    inputs = {"grad": graph.input("grad", "element"), "param": graph.input("param", "element")}
    for slot in recipe.rule.active_slots(recipe.o):
        inputs[slot.name] = graph.input(slot.name, slot.per)
    if recipe.average:
        inputs["average"] = graph.input("average", "element")
    result = step(SymbolNamespace(graph, recipe.complex), recipe, inputs, _Coefficients(graph))
    if recipe.master and "param" in result.stores:
        result.stores["model"] = result.stores["param"]
    return schedule(graph, result.stores, result.statistics, result.blocked)


def reads_ahead(recipe: Recipe) -> bool:
    """Whether a pass reads the parameter before the one that writes it, to measure it first.

    Parameters that share memory cannot be stepped one after the other then, since the passes of all
    are in step. What a report measures does not count: it is of all parameters as they were.
    """
    passes = trace(replace(recipe, report=False)).passes
    first = next((k for k, p in enumerate(passes) if "param" in p.stores), 0)
    return any(node.name == "param" for p in passes[:first] for node in p.inputs)


def works_by_element(recipe: Recipe) -> bool:
    """Whether the rule itself, all options aside, needs no more than each element's own values.

    Rows of a parameter can then be stepped alone.
    """
    bare = replace(recipe, clip=None, nonfinite="propagate", report=False)
    return len(trace(bare).passes) == 1
