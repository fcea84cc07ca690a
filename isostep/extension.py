"""Which methods of a framework's optimizer a user has replaced.

A framework's step calls methods that users override, one variable or one group at a time; the fused
step calls none of them. `Dialect.extension_points` lists them. An optimizer on which one of them is
overridden takes the framework's own step, with the framework's own state.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from isostep.errors import HyperparameterError


class Cause(NamedTuple):
    """Why a step is the framework's own.

    Args:
        why: in words.
        way_out: what to do for a fused step.
    """

    why: str
    way_out: str


def drop_in_of(cls: type) -> type:
    """The drop-in class that a class is or derives from: the one that names its rule."""
    return next(c for c in cls.__mro__ if "rule" in vars(c))


def overridden(optimizer: Any, names: Iterable[str]) -> tuple[str, ...]:
    """The methods among `names` that are not those of the drop-in class.

    Args:
        optimizer: an instance of a drop-in class, or of a class derived from one.
        names: the framework's extension points.

    Returns:
        The names of those that a subclass overrides, or that were set on the object itself.
    """
    cls, own = type(optimizer), vars(optimizer)
    made = drop_in_of(cls)
    if cls is made and own.keys().isdisjoint(names):  # the usual case, asked in every step
        return ()
    return tuple(
        name
        for name in names
        if name in own
        or (cls is not made and getattr(cls, name, None) is not getattr(made, name, None))
    )


def refuse(used: Iterable[str], why: str, way_out: str) -> None:
    """Raise if options of isostep are used where the framework's own step runs.

    Args:
        used: the options that differ from their defaults.
        why: what makes it the framework's own step, in words.
        way_out: what to do instead.

    Raises:
        HyperparameterError: there is one.
    """
    named = ", ".join(used)
    if named:
        raise HyperparameterError(f"{named}: not possible {why}; {way_out}")
