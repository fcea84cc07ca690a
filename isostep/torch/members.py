"""What a binding stands on besides memory: who is in the groups, and what is in the state."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch

from isostep.engines import objects
from isostep.torch.slots import kept_of

Groups = list[dict[str, Any]]

_params = operator.itemgetter("params")


class Members:
    """The parameters of an optimizer's groups.

    Args:
        groups: the optimizer's own.

    Attributes:
        params: all parameters, in order.
        names: of each its name; no two are the same.
        group_of: of each the index of its group.
    """

    def __init__(self, groups: Groups) -> None:
        self.params: list[torch.Tensor] = list(chain.from_iterable(map(_params, groups)))
        self._sizes = list(map(len, map(_params, groups)))
        self.names = _names(groups, self._sizes)
        self.group_of = [k for k, size in enumerate(self._sizes) for _ in range(size)]

    def hold(self, groups: Groups) -> bool:
        """Whether the groups still have these parameters."""
        return list(map(len, map(_params, groups))) == self._sizes and all(
            map(operator.is_, chain.from_iterable(map(_params, groups)), self.params)
        )


def own_lists(groups: Groups) -> None:
    """Have every group hold its parameters in something that can be gone through twice."""
    for group in groups:
        params = group["params"]
        if type(params) is not list and isinstance(params, Iterator):  # model.parameters()
            group["params"] = list(group["params"])


def _names(groups: Groups, sizes: list[int]) -> list[str]:
    """A name for each parameter, of which no two are the same."""
    names: list[Any] = []
    for group, size in zip(groups, sizes, strict=True):
        given = list(group.get("param_names") or ())
        names += given if len(given) == size else [None] * size  # edited by hand
    found: set[str | None] = set()
    result: list[str] = []
    for k, name in enumerate(names):
        result.append(str(k) if name is None else f"{name} ({k})" if name in found else name)
        found.add(name)
    return result


class Kept:
    """The entries of `optimizer.state` that steps write to.

    Args:
        state: the optimizer's own.
        entries: parameter, key and tensor of each.
    """

    def __init__(self, state: Any, entries: list[tuple[torch.Tensor, str, torch.Tensor]]) -> None:
        self._state, self._entries = state, entries
        self._look()

    def hold(self, state: Any) -> bool:
        """Whether each entry is where it was."""
        if state is not self._state:
            return False
        if self._same():
            return True
        if any(kept_of(state, p).get(key) is not tensor for p, key, tensor in self._entries):
            return False
        self._look()  # something of the user's own was edited
        return True

    def _look(self) -> None:
        """Notice from now on what is done to the state."""
        params = {id(p): p for p, _, _ in self._entries}
        dicts = [self._state, *(kept_of(self._state, p) for p in params.values())]
        plain = all(isinstance(each, dict) for each in dicts)
        self._same: objects.Same = objects.dicts(dicts) if plain else lambda: False
