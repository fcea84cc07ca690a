"""Whether Paddle records operations for gradients: switched, and put back whatever happens."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from paddle.base import core as _core

_P = ParamSpec("_P")
_T = TypeVar("_T")
core: Any = _core


def unrecorded(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """A function that runs while no operation is recorded."""

    @functools.wraps(function)
    def quietly(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        return recording(False, function, *args, **kwargs)

    return quietly


def recording(on: bool, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a function while operations are recorded, or are not.

    An exception may strike between any two instructions, so also before the mode is put back: that
    is done twice.
    """
    before = core._has_grad()
    try:
        try:
            core._set_has_grad(on)
            return function(*args, **kwargs)
        finally:
            core._set_has_grad(before)
    finally:
        core._set_has_grad(before)
