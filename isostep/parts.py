"""Optimizers that hold a part of a model: what spans parameters would span too few of them.

A global norm, a step that is skipped for a non-finite gradient, and a report look at all gradients.
Where a framework spreads parameters, or the elements of each, over processes, every process would
decide by its own. An optimizer tells by who makes or steps it, and by marks on its parameters,
which are data of the dialect; replicas of whole models have neither. Where the dialect knows the
processes that step all parts at once, front-ends add up over them; elsewhere such options are
refused.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from isostep.errors import HyperparameterError


def mark_of(params: Iterable[Any], marks: Mapping[str, str]) -> str:
    """What marks one of the parameters as a shard, in words; empty if nothing does.

    Args:
        params: the parameters.
        marks: attributes that are true of a shard, and whose they are.
    """
    for k, param in enumerate(params):
        for name, whose in marks.items():
            value = getattr(param, name, None)
            if value is not None and value is not False:  # it may be a tensor, or number 0
                return f"parameter {k} is a shard of {whose} (it has {name})"
    return ""


def holder_of(optimizer: Any, params: Collection[Any], names: Sequence[str]) -> Any:
    """The optimizer that makes or steps this one for a part of its parameters; None if none does.

    Args:
        optimizer: the one that asks.
        params: its parameters.
        names: classes that are known to step parts by optimizers inside of them: a part may be
            all there is, where other processes have nothing.
    """
    own = {id(p) for p in params}
    for outer in _callers():
        if outer is optimizer:
            continue
        known = any(cls.__name__ in names for cls in type(outer).__mro__)
        if known or own < set(map(id, _all_of(outer))):
            return outer
    return None


def held_by(holder: Any) -> str:
    """Why an optimizer has a part of a model, by what `holder_of` says; empty if it has not."""
    return "" if holder is None else f"{type(holder).__name__} gives it a part of its parameters"


def refuse(used: Sequence[str], why: str) -> None:
    """Raise if options are used that span parameters, where only some are at hand.

    Args:
        used: the options.
        why: what shows that it is a part; empty if it is none.

    Raises:
        HyperparameterError: there are such options.
    """
    if used and why:
        raise HyperparameterError(
            f"{', '.join(used)}: this optimizer holds a part of a model, and would go by that part "
            f"alone: {why}; clip, or look for non-finite gradients, before the step, by what the "
            f"framework has for parts"
        )


def _callers() -> Iterator[Any]:
    """The objects whose methods are being called, the innermost first."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("self",):
            yield frame.f_locals.get("self")
        frame = frame.f_back


def _all_of(optimizer: Any) -> list[Any]:
    """The parameters in the groups of what may be an optimizer."""
    with contextlib.suppress(Exception):  # it may be anything, and half made
        return [p for group in optimizer.param_groups for p in group["params"]]
    return []
