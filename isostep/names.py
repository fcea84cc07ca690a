"""Naming the leaves of nested dicts and lists: `{"a": [x, y]}` has `a.0` and `a.1`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from isostep.errors import ParameterError


def flatten(tree: Any, what: str = "params") -> dict[str, Any]:
    """The leaves of nested mappings, lists and tuples by dotted name, in order.

    A leaf at the very top has the name `""`.

    Raises:
        ParameterError: two leaves get the same name.
    """
    found: dict[str, Any] = {}
    _walk(tree, "", found, what)
    return found


def _walk(tree: Any, prefix: str, found: dict[str, Any], what: str) -> None:
    if isinstance(tree, Mapping):
        items = [(str(k), v) for k, v in cast(Mapping[Any, Any], tree).items()]
    elif isinstance(tree, list | tuple):
        items = [(str(k), v) for k, v in enumerate(cast(list[Any], tree))]
    else:
        if prefix in found:
            raise ParameterError(f"{what}: two entries are named {prefix!r}; rename one")
        found[prefix] = tree
        return
    for name, value in items:
        _walk(value, f"{prefix}.{name}" if prefix else name, found, what)
