"""What stands in Python's objects and in those of a framework, read by machine code.

A question to a framework costs a tenth of a microsecond, and a step has a dozen of them for each of
hundreds of tensors. The answers stand in memory, so machine code can read them, if it knows where.
Nothing is taken on trust: what stands at an offset is compared with what Python and the framework
say. Where one comparison fails, they are asked.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import operator
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from isostep.compile import machine_code

Same = Callable[[], bool]
"""Whether everything is as it was."""

_OBJECT = 8  # words that are searched


@dataclass(frozen=True)
class Layout:
    """Where it stands in Python's objects, in words of eight bytes from their start.

    Args:
        kind: in an object, its type.
        items: in a list, the array of its items.
        version: in a dict, what each edit changes; 0 where this Python counts no edits.
    """

    kind: int
    items: int
    version: int


@functools.cache
def layout() -> Layout | None:
    """The layout in this process; None if it is not certain, or if threads run without a lock."""
    if ctypes.sizeof(ctypes.c_void_p) != 8 or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return None
    probes: list[Any] = ["", 0.5, [], {}, (), object(), set[int]()]
    lists = [[object() for _ in range(n)] for n in (1, 2, 3)]
    try:
        return Layout(
            kind=find(list(map(id, probes)), [id(type(p)) for p in probes], _OBJECT),
            items=first(k for k in range(1, _OBJECT) if all(_holds(each, k) for each in lists)),
            version=_version_place(),
        )
    except LookupError:
        return None


def find(bases: Sequence[int], expected: Sequence[int], length: int) -> int:
    """The word at which each object has what is expected of it.

    Args:
        bases: where the objects start.
        expected: of each, what stands there.
        length: how many words are searched.

    Raises:
        LookupError: there is none.
    """
    return first(
        k
        for k in range(length)
        if all(word(b, k) == e for b, e in zip(bases, expected, strict=True))
    )


def first(places: Iterable[int]) -> int:
    """The first of some places.

    Raises:
        LookupError: there is none.
    """
    for place in places:
        return place
    raise LookupError("not found")


def word(base: int, place: int) -> int:
    """A word of eight bytes of an object."""
    return ctypes.c_int64.from_address(base + 8 * place).value


def mapped(address: int, words: int) -> bool:
    """Whether so many words can be read at an address, as far as the system tells: a word that
    looks like an address may be anything."""
    page = mmap.PAGESIZE
    start = address // page * page
    length = -(-(address + 8 * words - start) // page) * page
    try:
        return address > 0 and _mincore(start, length)
    except (AttributeError, OSError, TypeError):  # Windows opens no library without a name
        return False


def _mincore(start: int, length: int) -> bool:
    """Whether all pages are there."""
    told = (ctypes.c_ubyte * (length // mmap.PAGESIZE))()
    function = ctypes.CDLL(None).mincore
    failed = function(ctypes.c_void_p(start), ctypes.c_size_t(length), told)
    # Linux fails where nothing is; others may only say that it is not in memory.
    return failed == 0 and (sys.platform == "linux" or all(told))


def _holds(items: list[Any], place: int) -> bool:
    array = word(id(items), place)
    # Any word is followed only if it may be the address of something.
    return array > 4096 and array % 8 == 0 and _readable(items, array)


def _readable(items: list[Any], array: int) -> bool:
    near = abs(array - id(items)) < 1 << 40  # in the same region of memory as the list
    return near and [word(array, k) for k in range(len(items))] == list(map(id, items))


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


# -- looks -----------------------------------------------------------------------------------------

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
        self.words = (ctypes.c_int64 * len(words))(*words)
        self._bounds = (ctypes.c_int64 * 2)(0, high)
        self._row = ctypes.c_void_p(ctypes.addressof(self._bounds))
        entry: Any = _Entry(machine_code.build(source).addresses[name])
        entry.kept = keep, self._bounds, self._row, self.words  # `call` may outlive this object
        given = (ctypes.addressof(self._row), None, None, ctypes.addressof(self.words))
        self.call: Callable[[], None] = functools.partial(entry, *given)


def compared(source: str, name: str, watched: list[Any], rows: Any) -> Same:
    """Record what stands in memory now, and compare it in each call.

    Args:
        source: the text of a module with `record_{name}` and `compare_{name}`, whose context is
            three addresses: of the list, of the rows, and of a word that is set to 1 at the end.
        name: what is looked at.
        watched: the objects; the list must not be changed.
        rows: room for what is recorded.
    """
    verdict = np.zeros(1, dtype=np.int64)
    context = [id(watched), rows.ctypes.data, verdict.ctypes.data]
    record = Look(source, f"record_{name}", context, len(watched), (watched, rows, verdict))
    record.call()
    compare = Look(source, f"compare_{name}", context, len(watched), (watched, rows, verdict))

    def same() -> bool:
        verdict[0] = 0
        compare.call()
        return verdict[0] == 1

    return same


def each(name: str, depth: int, words: Sequence[str], place: str) -> str:
    """Lines of a function that record each word, or end the look where one differs.

    Args:
        name: `"record"` or `"compare"`.
        depth: how far the lines are indented.
        words: expressions.
        place: that of the word's row, with the word's number as `{k}`.
    """
    margin = " " * depth
    lines: list[str] = []
    for k, expression in enumerate(words):
        row = f"rows[{place.format(k=k)}]"
        if name == "record":
            lines.append(f"{margin}{row} = {expression}")
        else:
            lines += [f"{margin}if {expression} != {row}:", f"{margin}    return"]
    return "\n".join(lines)


# -- dicts -----------------------------------------------------------------------------------------


def dicts(watched: list[dict[Any, Any]]) -> Same:
    """A look at dicts: whether their keys and values are the same objects.

    It may say no where there was an edit that changed nothing.

    Args:
        watched: the dicts; the list must not be changed.
    """
    at = layout()
    return _held(watched) if at is None or not at.version else _counted(watched, at)


def _counted(watched: list[dict[Any, Any]], at: Layout) -> Same:
    rows = np.zeros(len(watched), dtype=np.int64)
    return compared(_dicts_source(at), "dicts", watched, rows)


def _held(watched: list[dict[Any, Any]]) -> Same:
    end = object()  # stands in no dict

    def contents() -> Any:
        values = chain.from_iterable(map(dict.values, watched))
        return chain(chain.from_iterable(watched), values, (end,))

    before = list(contents())

    def same() -> bool:
        return all(map(operator.is_, contents(), before))

    return same


_DICTS = """
from isostep.compile.intrinsics import int64_at


def {name}_dicts(low, high, context):
    w = int64_at(context)
    items = int64_at(int64_at(w[0])[{at.items}])
    rows = int64_at(w[1])
    verdict = int64_at(w[2])
    for k in range(low, high):
        dictionary = int64_at(items[k])
{words}
    verdict[0] = 1
"""


@functools.cache
def _dicts_source(at: Layout) -> str:
    words = [f"dictionary[{at.version}]"]
    return "".join(
        _DICTS.format(name=name, at=at, words=each(name, 8, words, "k + {k}"))
        for name in ("record", "compare")
    )
