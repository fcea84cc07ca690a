"""Where many tensors lie, asked in one call.

`Tensor.data_ptr()` costs one or two tenths of a microsecond, which a step over hundreds of tensors
feels twice. torch has a C function for the loops that it compiles itself, and says where it is; a
kernel calls it for all tensors of a list. Where it is not there, each tensor is asked.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from isostep.engines.objects import Look

Addresses = NDArray[np.int64]

_SOURCE = """
from isostep.compile.intrinsics import call_at, int64_at


def ask(low, high, context):
    tables = int64_at(context)
    objects, found, function = int64_at(tables[0]), int64_at(tables[1]), tables[2]
    for k in range(low, high):
        found[k] = call_at(function, objects[k])
"""

_MANY = 8
_data_ptr = torch.Tensor.data_ptr


_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))


def addresses(tensors: Sequence[torch.Tensor]) -> Addresses:
    """The address of the data of each tensor. All must be dense: torch's function cannot refuse.

    Of other classes it would ask Python, so they are asked themselves.
    """
    if len(tensors) < _MANY or not _usable() or not _PLAIN.issuperset(map(type, tensors)):
        return np.fromiter(map(_data_ptr, tensors), np.int64, len(tensors))
    return _ask(tensors)


def _ask(tensors: Sequence[Any]) -> Addresses:
    objects = np.fromiter(tensors, dtype=object, count=len(tensors))
    found = np.empty(len(tensors), dtype=np.int64)
    words = [objects.ctypes.data, found.ctypes.data, _function()]
    Look(_SOURCE, "ask", words, len(tensors), (objects, found)).call()
    return found


@functools.cache
def _function() -> int:
    """The address of torch's function; 0 if this torch has none."""
    try:
        from torch._C._dynamo import guards
    except ImportError:
        return 0
    return int(getattr(guards, "_torchinductor_pyobject_tensor_data_ptr", 0))


@functools.cache
def _usable() -> bool:
    """Whether the function says of some tensors what they say themselves."""
    probes = [torch.zeros(3), torch.zeros(4, 4)[1:, 2:], torch.nn.Parameter(torch.zeros(()))]
    return bool(_function()) and _ask(probes).tolist() == list(map(_data_ptr, probes))
