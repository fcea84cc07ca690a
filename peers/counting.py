"""Counting how often isostep's optimizers are made and step, without changing what they do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from peers.places import Method, Places


class Counts:
    """How often isostep was used since `start`.

    Args:
        tracing: whether the framework is tracing, when nothing is counted.
    """

    def __init__(self, tracing: Callable[[], bool]) -> None:
        self._tracing = tracing
        self.start()

    def start(self) -> None:
        """Begin at zero."""
        self.made = self.steps = 0

    def watch(self, places: Places) -> None:
        """Count from now on.

        Raises:
            AttributeError: a class does not define the method that is to be counted.
        """
        for method in places.constructs:
            self._wrap(method, self._one_made)
        for method in places.steps:
            self._wrap(method, self._one_step)

    def _one_made(self) -> None:
        self.made += 1

    def _one_step(self) -> None:
        self.steps += 1

    def _wrap(self, method: Method, count: Callable[[], None]) -> None:
        owner, name = method
        found = vars(owner).get(name)
        if found is None:
            raise AttributeError(
                f"{owner.__module__}.{owner.__name__} defines no {name}, which peers counts: "
                f"name the method that takes its place in peers/places"
            )
        original = found.__func__ if isinstance(found, staticmethod) else found
        tracing = self._tracing

        @functools.wraps(original)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if not tracing():
                count()
            return original(*args, **kwargs)

        setattr(owner, name, staticmethod(counted) if original is not found else counted)
