"""The dialects: how torch, Keras, tf_keras, Paddle and optax spell the rules.

`get("keras").spelling("AdamW")` is data: names, defaults and form; its `resolve` turns what a user
set into the rule's hyperparameters. `difference("AdamW", "torch", "keras")` is a table of what
changes when training moves from one framework to another. No framework is imported here.
"""

from __future__ import annotations

from isostep.dialects import keras, optax, paddle, tf_keras, torch
from isostep.dialects.base import CLIP_KINDS, REQUIRED, Averaging, ClipKind, Dialect, Spelling
from isostep.dialects.difference import compare
from isostep.errors import UnknownNameError, nearest
from isostep.rules import Rule
from isostep.table import Table

__all__ = [
    "CLIP_KINDS",
    "REQUIRED",
    "Averaging",
    "ClipKind",
    "Dialect",
    "Spelling",
    "Table",
    "difference",
    "get",
    "names",
]

_dialects = {
    module.DIALECT.name: module.DIALECT for module in (torch, keras, tf_keras, paddle, optax)
}


def names() -> list[str]:
    """The names of all dialects."""
    return list(_dialects)


def get(name: str | Dialect) -> Dialect:
    """The dialect called `name`; a `Dialect` is returned as it is.

    Raises:
        UnknownNameError: no dialect has this name; the message suggests the nearest.
    """
    if isinstance(name, Dialect):
        return name
    if not isinstance(name, str) or name not in _dialects:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UnknownNameError(
            f"there is no dialect {name!r}{nearest(str(name), _dialects)} "
            f"(known: {', '.join(_dialects)})"
        )
    return _dialects[name]


def difference(rule: str | Rule, a: str | Dialect, b: str | Dialect, *, all: bool = False) -> Table:
    """What differs between two dialects of one rule, as a table that prints as plain text.

    Args:
        rule: a rule, its name, or the name of a second class of either framework (`"Momentum"`).
        a, b: the dialects or their names.
        all: rows that agree are shown as well.

    Raises:
        UnknownNameError: there is no such rule or dialect, or a framework lacks the rule.
    """
    return compare(rule, get(a), get(b), all=all)
