"""Which arrays may be parameters: what is refused, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np

from isostep.engines.leaf import AnyArray
from isostep.errors import ParameterError
from isostep.stepper import DTYPES

_OF_ELEMENTS = ("__setitem__", "__array_ufunc__", "__iadd__", "__isub__")


def checked_params(named: dict[str, Any]) -> dict[str, AnyArray]:
    if not named:
        raise ParameterError("there are no parameters")
    for name, array in named.items():
        if not isinstance(array, np.ndarray):
            raise ParameterError(
                f"parameter {name!r} is {type(array).__name__}, not a NumPy array, and could not "
                f"be updated in place"
            )
        array = cast(AnyArray, array)
        if behaves(array):
            raise ParameterError(
                f"parameter {name!r} is a {type(array).__name__}, whose class has a say in how "
                f"elements are written, which no kernel asks: pass np.asarray of it"
            )
        if array.dtype.name not in DTYPES or not array.dtype.isnative:
            raise ParameterError(
                f"parameter {name!r} has dtype {array.dtype}: use one of {', '.join(DTYPES)} in "
                f"native byte order"
            )
        if not array.flags.writeable:
            raise ParameterError(
                f"parameter {name!r} is read-only and could not be updated in place: pass a copy"
            )
        if _overlaps_itself(array):
            raise ParameterError(
                f"parameter {name!r} overlaps itself (broadcast, or sliding windows): pass a copy"
            )
    for one, other in overlaps(named):
        raise ParameterError(
            f"parameters {one!r} and {other!r} share memory: give each array once, under one name"
        )
    return named


def behaves(array: AnyArray) -> bool:
    """Whether the class of an array does something of its own where elements are written or
    computed on, as that of masked arrays and of quantities with units does."""
    kind = type(array)
    return kind is not np.ndarray and any(
        getattr(kind, name) is not getattr(np.ndarray, name) for name in _OF_ELEMENTS
    )


def owners(array: AnyArray) -> Iterator[AnyArray]:
    """The arrays whose memory an array is a view of."""
    owner: Any = array.base
    while owner is not None:
        if isinstance(owner, memoryview):
            owner = owner.obj
            continue
        if isinstance(owner, np.ndarray):
            yield cast(AnyArray, owner)
        # What `as_strided` puts between an array and its view has a base as well.
        numpys = type(owner).__module__.startswith("numpy")
        owner = getattr(owner, "base", None) if isinstance(owner, np.ndarray) or numpys else None


def overlaps(named: Mapping[str, AnyArray]) -> Iterator[tuple[str, str]]:
    """Pairs of arrays that share memory, and arrays that share it with themselves."""
    spans = sorted(
        (*np.lib.array_utils.byte_bounds(a), name) for name, a in named.items() if a.size
    )
    reached: list[tuple[int, int, str]] = []
    for low, high, name in spans:
        reached = [s for s in reached if s[1] > low]
        for _, _, other in reached:
            if np.shares_memory(named[name], named[other]):
                yield other, name
        reached.append((low, high, name))
    yield from ((name, name) for name, array in named.items() if _overlaps_itself(array))


def _overlaps_itself(array: AnyArray) -> bool:
    """Whether a step along some axis stays within what the shorter steps reach."""
    reach = array.itemsize
    for step, length in sorted(
        (abs(s), n) for s, n in zip(array.strides, array.shape, strict=True)
    ):
        if length > 1 and step < reach:
            return array.size > 0
        reach += step * (length - 1)
    return False
