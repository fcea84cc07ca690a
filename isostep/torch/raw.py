"""Where torch and Python keep what a step looks at: offsets in their objects, found by comparison.

A question to torch costs a tenth of a microsecond, and a step has a dozen of them for each of
hundreds of tensors. The answers stand in memory, so machine code can read them, if it knows where.
Nothing is taken on trust: what stands at an offset is compared with what torch says of tensors of
many kinds (the probes). Where one comparison fails, there is no `Offsets`, and torch is asked.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from isostep.compile import machine_code

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
        version: in a dict, what each edit changes; 0 where this Python counts no edits.
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
    version: int


@functools.cache
def offsets() -> Offsets | None:
    """The offsets in this process; None if one of them is not certain."""
    if ctypes.sizeof(ctypes.c_void_p) != 8 or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return None
    try:
        with torch.inference_mode(False), torch.no_grad():
            found = _offsets()
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


def _offsets() -> Offsets:
    tensors = _probes()
    bases = [t._cdata for t in tensors]
    storages = [t.untyped_storage() for t in tensors]
    owners = [s._cdata for s in storages]
    ndim = _find(bases, [t.ndim for t in tensors], _TENSOR)
    if not all(_sizes(t, ndim) == (tuple(t.shape), t.stride()) for t in tensors):
        raise LookupError("sizes")
    lists = [[object() for _ in range(n)] for n in (1, 2, 3)]
    return Offsets(
        kind=_find(list(map(id, tensors)), [id(type(t)) for t in tensors], _OBJECT),
        items=_first(k for k in range(1, _OBJECT) if all(_holds(each, k) for each in lists)),
        impl=_find(list(map(id, tensors)), bases, _OBJECT),
        storage=_find(bases, owners, _TENSOR),
        keys=_find(bases, list(map(keys, tensors)), _TENSOR),
        start=_find(bases, [int(t.storage_offset()) for t in tensors], _TENSOR),
        ndim=ndim,
        dtype=_dtype_place(),
        data=_find(owners, [s.data_ptr() for s in storages], _STORAGE),
        nbytes=_find(owners, [s.nbytes() for s in storages], _STORAGE),
        version=_version_place(),
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


def _find(bases: Sequence[int], expected: Sequence[int], length: int) -> int:
    """The word at which each object has what is expected of it."""
    return _first(
        k
        for k in range(length)
        if all(word(b, k) == e for b, e in zip(bases, expected, strict=True))
    )


def _first(places: Any) -> int:
    for place in places:
        return place
    raise LookupError("not found")


def word(base: int, place: int) -> int:
    """A word of an object."""
    return ctypes.c_int64.from_address(base + 8 * place).value


def _half(base: int, place: int) -> int:
    return ctypes.c_uint16.from_address(base + 2 * place).value


def _holds(items: list[Any], place: int) -> bool:
    array = word(id(items), place)
    # Any word is followed only if it may be the address of something.
    return array > 4096 and array % 8 == 0 and _readable(items, array)


def _readable(items: list[Any], array: int) -> bool:
    near = abs(array - id(items)) < 1 << 40  # in the same region of memory as the list
    return near and [word(array, k) for k in range(len(items))] == list(map(id, items))


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

    return _first(k for k in range(4 * _TENSOR) if tells(k))


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


def _version_place() -> int:
    """The word of a dict that each edit changes and no look does; 0 if there is none."""
    edits: list[Callable[[dict[str, Any]], Any]] = [
        lambda d: d.__setitem__("a", object()),
        lambda d: d.__setitem__("b", object()),
        lambda d: d.__setitem__("a", object()),
        lambda d: d.update(a=object()),
        lambda d: d.__ior__({"a": object()}),
        lambda d: d.setdefault("c", object()),
        lambda d: d.pop("c"),
        lambda d: d.popitem(),
        lambda d: d.clear(),
        lambda d: d.__setitem__("a", object()),
    ]
    looks: list[Callable[[dict[str, Any]], Any]] = [
        lambda d: d.get("a"),
        lambda d: list(d.items()),
        lambda d: d.setdefault("a", None) if "a" in d else None,
        lambda d: d == {},
        lambda d: d.copy(),
    ]

    def tells(place: int, kind: type) -> bool:
        d, seen = kind(), set[int]()
        for edit in edits:
            edit(d)
            now = word(id(d), place)
            for look in looks:
                look(d)
            if now in seen or word(id(d), place) != now:
                return False
            seen.add(now)
        return True

    return next((k for k in range(2, 6) if tells(k, dict)), 0)


_Entry = ctypes.PYFUNCTYPE(None, *[ctypes.c_void_p] * 4)


class Look:
    """A call of machine code that looks at Python objects, while no other thread may change them.

    Args:
        source: the text of a module, whose functions take `low, high, context`.
        name: the function.
        words: what the context holds.
        high: the end of what is gone through.
        keep: whose addresses are among the words.
    """

    def __init__(
        self, source: str, name: str, words: Sequence[int], high: int, keep: tuple[Any, ...]
    ) -> None:
        self._keep = keep
        self.words = (ctypes.c_int64 * len(words))(*words)
        self._bounds = (ctypes.c_int64 * 2)(0, high)
        self._row = ctypes.c_void_p(ctypes.addressof(self._bounds))
        entry = _Entry(machine_code.build(source).addresses[name])
        given = (ctypes.addressof(self._row), None, None, ctypes.addressof(self.words))
        self.call: Callable[[], None] = functools.partial(entry, *given)
