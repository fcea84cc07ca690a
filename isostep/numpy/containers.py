"""The dicts and lists that a user keeps parameters in: what stands in them now.

`params["w"] = other` is an edit like any other, and users make it between two steps. So names
decide what is stepped, not the arrays that an optimizer once met under them.
"""

from __future__ import annotations

import copy
import operator
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np

from isostep.engines import objects
from isostep.engines.headers import header
from isostep.names import flatten

_DICTS = (dict, OrderedDict, defaultdict)  # of which Python counts the edits


class Containers:
    """The containers of some parameters.

    Args:
        tree: nested mappings, lists and tuples, as the optimizer was given them.
    """

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self.record(self.entries())

    def entries(self) -> dict[str, Any]:
        """What stands under each name.

        Raises:
            ParameterError: two entries have the same name.
        """
        return flatten(self._tree)

    def record(self, entries: dict[str, Any]) -> None:
        """Take it as known who is there.

        Args:
            entries: as `entries` gave them.
        """
        nested = list(_containers(self._tree))
        dicts = [each for each in nested if type(each) in _DICTS]
        self._lists = [each for each in nested if type(each) is list]
        # A mapping of another class may give anything: it is asked for its entries each time.
        self._plain = len(dicts) + len(self._lists) == len(nested)
        self._items = list(map(list[Any], self._lists))
        self._dicts: objects.Same = objects.dicts(dicts) if dicts else lambda: True
        self._entries = entries

    def same(self) -> bool:
        """Whether the same arrays stand under the same names."""
        if self._plain and self._dicts() and (not self._lists or self._same_items()):
            return True
        entries, known = self.entries(), self._entries
        same = operator.is_ if self._plain else _sees_the_same
        alike = entries.keys() == known.keys() and all(
            same(entry, known[name]) for name, entry in entries.items()
        )
        if alike and self._plain:
            self.record(known)  # something was put where it had been
        return alike

    def _same_items(self) -> bool:
        return all(
            len(now) == len(before) and all(map(operator.is_, now, before))
            for now, before in zip(self._lists, self._items, strict=True)
        )

    def copied(self, memo: dict[int, Any]) -> Any:
        """The containers with copies of the parameters, for `copy.deepcopy`."""
        try:
            return copy.deepcopy(self._tree, memo)
        except Exception:  # a mapping that cannot be copied, such as a MappingProxyType
            return {name: copy.deepcopy(each, memo) for name, each in self.entries().items()}


def _containers(tree: Any) -> Iterator[Any]:
    """The containers in a tree that can be edited."""
    if isinstance(tree, Mapping):
        yield tree
        inside = cast(Mapping[Any, Any], tree).values()
    elif isinstance(tree, list | tuple):
        if not isinstance(tree, tuple):
            yield tree
        inside = cast(list[Any], tree)
    else:
        return
    for each in inside:
        yield from _containers(each)


def _sees_the_same(entry: Any, known: Any) -> bool:
    """Whether an entry is the array that it was, or another view of its memory, as a mapping makes
    them that is asked for one."""
    if entry is known or not isinstance(known, np.ndarray):
        return entry is known
    return type(entry) is type(known) and header(entry) == header(known)
