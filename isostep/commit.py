"""Steps that an exception may strike anywhere, and that end whole all the same.

A step that has begun to write cannot be taken back. So it is gone on with: it is run once more, and
passes over what is done already. What is done is known exactly, wherever the exception struck:
kernels are called from a loop in C that appends to a list, and between two of its turns the
interpreter runs no code in which an exception could be raised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from isostep.interrupts import Delayed

T = TypeVar("T")

_ATTEMPTS = 5
"""How often a step is gone on with: who has interrupted it may do so again."""


class Progress:
    """What is done of a step.

    The step must come to the same calls in the same order each time that it is run.
    """

    def __init__(self) -> None:
        self._done: list[Any] = []
        self._next = 0

    def begin(self) -> None:
        """Run the step from its start."""
        self._next = 0

    def call(self, function: Callable[..., Any], *columns: Sequence[Any]) -> None:
        """Call a function for each row of `columns`, as far as that is not done.

        Args:
            function: written in C, so that no exception comes between its end and the next turn.
            columns: for each parameter of the function its values, of equal length.
        """
        first, self._next = self._next, self._next + len(columns[0])
        known = len(self._done) - first
        if known > 0:
            columns = tuple(column[known:] for column in columns)
        self._done.extend(map(function, *columns))

    def once(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function, if that is not done, and return what it returned.

        Args:
            function: written in C, as for `call`.
            arguments: its arguments.
        """
        number = self._next
        self.call(function, *([argument] for argument in arguments))
        return self._done[number]

    def write(self, compute: Callable[[], tuple[Any, Any]], store: Callable[[Any], None]) -> Any:
        """Compute what is to be written, and write it.

        Args:
            compute: gives the values and a result; writes nothing.
            store: writes the values; doing it twice does no harm.

        Returns:
            The result.
        """
        number, self._next = self._next, self._next + 1
        if number == len(self._done):
            self._done.append(compute())
        values, result = self._done[number]
        if values is not None:  # not held for longer than needed
            store(values)
            self._done[number] = None, result
        return result


def run(step: Callable[[Progress], T]) -> T:
    """Run a step to its end.

    Args:
        step: what writes. It does so by the `Progress` that it is given, or in ways that do no
            harm when they are done twice; run again after an exception, it ends what it began.

    Returns:
        What the step returns.

    Raises:
        BaseException: what was raised in the middle of the step, once the step is whole. An
            interrupt from the keyboard acts after the step, too.
    """
    progress, delayed = Progress(), Delayed()
    try:
        with delayed:
            return step(progress)
    except BaseException:
        _end(step, progress)
        delayed.end()
        raise


def _end(step: Callable[[Progress], Any], progress: Progress) -> None:
    """Bring a step to its end that an exception has left."""
    for _ in range(_ATTEMPTS):
        try:
            progress.begin()
            step(progress)
            return
        except BaseException:  # the one that came first is raised
            continue
