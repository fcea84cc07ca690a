"""Where torch keeps what a step looks at: offsets in its objects, found by comparison.

What stands at an offset is compared with what torch says of tensors of many kinds (the probes).
Where one comparison fails, there is no `Offsets`, and torch is asked; see `engines.objects`.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from isostep.engines import objects
from isostep.engines.objects import find, first, word

INLINE = 5
"""Up to so many dimensions, torch keeps sizes and strides in the tensor itself."""

_OBJECT, _TENSOR, _STORAGE = 8, 24, 8  # words that are searched


@dataclass(frozen=True)
class Offsets:
    """Where it stands, in words of eight bytes from the start of each object.

    Args:
        kind: in a Python object, its type.
        items: in a Python list, the array of its items.
        impl: in a tensor's Python object, the tensor.
        storage, keys, start, ndim: in a tensor, its storage, dispatch keys, storage offset and
            number of dimensions; sizes follow the last.
        dtype: in a tensor, its dtype, in words of two bytes.
        data, nbytes: in a storage, the address and the number of its bytes; between them stands who
            owns the memory.
    """

    kind: int
    items: int
    impl: int
    storage: int
    keys: int
    start: int
    ndim: int
    dtype: int
    data: int
    nbytes: int


@functools.cache
def offsets() -> Offsets | None:
    """The offsets in this process; None if one of them is not certain."""
    python = objects.layout()
    if python is None:
        return None
    try:
        with torch.inference_mode(False), torch.no_grad():
            found = _offsets(python)
            return found if _sees_owners(found) else None
    except (LookupError, AttributeError, RuntimeError, TypeError):
        return None


def keys(tensor: torch.Tensor) -> int:
    """The dispatch keys of a tensor, as a signed word."""
    raw = torch._C._dispatch_keys(tensor).raw_repr()
    return raw - (1 << 64) if raw >> 63 else raw


def dtype_word(dtype: torch.dtype) -> int:
    """What stands for a dtype in a tensor."""
    found = offsets()
    assert found is not None
    return _half(torch.empty(0, dtype=dtype, device="cpu")._cdata, found.dtype)


def _offsets(python: objects.Layout) -> Offsets:
    tensors = _probes()
    bases = [t._cdata for t in tensors]
    storages = [t.untyped_storage() for t in tensors]
    owners = [s._cdata for s in storages]
    ndim = find(bases, [t.ndim for t in tensors], _TENSOR)
    if not all(_sizes(t, ndim) == (tuple(t.shape), t.stride()) for t in tensors):
        raise LookupError("sizes")
    return Offsets(
        kind=python.kind,
        items=python.items,
        impl=find(list(map(id, tensors)), bases, _OBJECT),
        storage=find(bases, owners, _TENSOR),
        keys=find(bases, list(map(keys, tensors)), _TENSOR),
        start=find(bases, [int(t.storage_offset()) for t in tensors], _TENSOR),
        ndim=ndim,
        dtype=_dtype_place(),
        data=find(owners, [s.data_ptr() for s in storages], _STORAGE),
        nbytes=find(owners, [s.nbytes() for s in storages], _STORAGE),
    )


def _probes() -> list[torch.Tensor]:
    """Tensors of which no two agree in what is looked for."""
    cpu = torch.device("cpu")
    return [
        torch.zeros((), device=cpu),
        torch.zeros(90, device=cpu)[7:],
        torch.zeros(8, 9, device=cpu)[1:, 2:],
        torch.nn.Parameter(torch.zeros(11, 13, device=cpu)),
        torch.zeros(3, 4, 5, dtype=torch.float64, device=cpu).transpose(0, 2)[1:],
        torch.zeros(2, 3, 4, 6, dtype=torch.bfloat16, device=cpu),
        torch.zeros(1, 2, 3, 4, 7, dtype=torch.int64, device=cpu)[:, 1],
        torch.zeros(2, 1, 2, 3, 1, 2, 3, dtype=torch.float16, device=cpu)[:, :, 1:],
        torch.zeros(6, 5, dtype=torch.complex64, device=cpu).conj()[2:],
        torch.zeros(6, 17, dtype=torch.complex64, device=cpu).conj().imag[3:],
        torch.zeros(19, device="meta")[5:],
    ]


def _half(base: int, place: int) -> int:
    return ctypes.c_uint16.from_address(base + 2 * place).value


def _sizes(tensor: torch.Tensor, ndim: int) -> tuple[Any, Any]:
    base, n, room = tensor._cdata + 8 * (ndim + 1), tensor.ndim, INLINE
    if n > INLINE:
        base, room = word(base, 0), n
    return tuple(word(base, k) for k in range(n)), tuple(word(base, room + k) for k in range(n))


def _dtype_place() -> int:
    """The half word that dtypes differ in, whatever the shape."""
    dtypes = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64]
    dtypes += [torch.int32, torch.uint8, torch.bool, torch.complex64, torch.complex128]
    few = [[torch.zeros(s, dtype=d, device="cpu") for s in ((), (3,), (2, 4))] for d in dtypes]
    some = [[*tensors, tensors[2].t(), tensors[1][1:]] for tensors in few]

    def tells(place: int) -> bool:
        seen = [{_half(t._cdata, place) for t in tensors} for tensors in some]
        return all(len(each) == 1 for each in seen) and len(set.union(*seen)) == len(dtypes)

    return first(k for k in range(4 * _TENSOR) if tells(k))


def _sees_owners(found: Offsets) -> bool:
    """Whether a storage whose memory is shared by copy-on-write differs from one that owns it."""
    if not found.data < found.nbytes <= found.data + 6:
        return False
    tensor = torch.zeros(3, device="cpu")
    owner = tensor.untyped_storage()._cdata

    def words() -> list[int]:
        return [word(owner, k) for k in range(found.data, found.nbytes + 1)]

    lazily: Callable[..., Any] | None = getattr(torch, "_lazy_clone", None)
    before = words()
    kept = None if lazily is None else lazily(tensor)
    return kept is None or words() != before
