"""Where a framework's optimizers are found, and which of isostep's take their place.

One module for each framework. The substitution itself is the same everywhere: every name of every
loaded module of the framework that stands for one of its optimizers is made to stand for isostep's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any


def _nothing() -> None:
    return None


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Places:
    """What the plugin must know of one framework.

    Args:
        pairs: each optimizer of the framework with isostep's.
        modules: the framework's packages, whose names are replaced.
        constructs, steps: methods of isostep's classes that are counted, as
            `module:class.method`; the class itself must define them.
        tracing: whether the framework is tracing Python just now, when counting would leave marks
            in the program that it makes.
        prepare: runs first, on both sides.
    """

    pairs: Sequence[tuple[Any, Any]]
    modules: Sequence[str]
    constructs: Sequence[str]
    steps: Sequence[str]
    tracing: Callable[[], bool] = _never
    prepare: Callable[[], None] = _nothing

    def substitute(self) -> None:
        """Put isostep's optimizers in the place of the framework's own."""
        ours = {id(theirs): own for theirs, own in self.pairs}
        for module in _loaded(self.modules):
            replace(vars(module), ours)


def load(name: str) -> Places:
    """The places of one framework, which is imported.

    Args:
        name: a module of this package, or the full name of a module elsewhere.
    """
    return import_module(name if "." in name else f"peers.places.{name}").places()


def owner(method: str) -> tuple[Any, str]:
    """The class of a method that is counted, and the method's name.

    Raises:
        AttributeError: the class does not define it.
    """
    module, _, rest = method.partition(":")
    cls, _, name = rest.partition(".")
    found = getattr(import_module(module), cls)
    if name not in vars(found):
        raise AttributeError(
            f"{module}.{cls} defines no {name}, which peers counts: name in peers/places the "
            f"method that takes its place"
        )
    return found, name


def pairs(theirs: Any, ours: Any) -> list[tuple[Any, Any]]:
    """The public names that both modules have."""
    both = [name for name in ours.__all__ if hasattr(theirs, name)]
    return [(getattr(theirs, name), getattr(ours, name)) for name in both]


def replace(names: dict[str, Any], ours: Mapping[int, Any]) -> None:
    """Replace optimizers in a namespace and in the containers that it holds."""
    for name, value in list(names.items()):
        new = replaced(value, ours)
        if new is not value:
            names[name] = new


def replaced(value: Any, ours: Mapping[int, Any]) -> Any:
    """isostep's optimizer for the framework's, or a container with them, which keeps its identity
    if it can be changed; anything else as it is."""
    if id(value) in ours:
        return ours[id(value)]
    kind = type(value)
    if kind in (dict, list, set, tuple, frozenset) and any(id(v) in ours for v in _members(value)):
        if kind is dict:
            new_items = {ours.get(id(k), k): ours.get(id(v), v) for k, v in value.items()}
            value.clear()
            value.update(new_items)
            return value
        new = [ours.get(id(v), v) for v in value]
        if kind is list:
            value[:] = new
        elif kind is set:
            value.clear()
            value.update(new)
        else:
            return kind(new)
    return value


def _members(container: Any) -> Iterable[Any]:
    return (*container, *container.values()) if isinstance(container, dict) else container


def _loaded(packages: Sequence[str]) -> list[Any]:
    return [
        module
        for name, module in sorted(sys.modules.items())
        if module is not None and name.partition(".")[0] in packages
    ]
