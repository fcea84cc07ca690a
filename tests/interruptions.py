"""Exceptions at any place of a step: what every front-end is held to.

A step is run again and again from the same start, and each time an exception strikes at another
place: between two instructions of the package's code. What is left must be the state before the
step or the state after it, bit for bit; and the next steps go on from there.
"""

from __future__ import annotations

import contextlib
import random
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import isostep


class Struck(BaseException):
    """The exception that strikes."""


@dataclass(frozen=True)
class Training:
    """An optimizer in the middle of its work.

    Args:
        step: takes one step, with gradients that belong to the number of steps before it.
        snapshot: everything that a step changes, as bytes by name.
    """

    step: Callable[[int], Any]
    snapshot: Callable[[], dict[str, bytes]]


def by_exception() -> None:
    """Strike as a trace function or another thread can: with an exception out of nowhere."""
    raise Struck


def by_signal() -> None:
    """Strike as Ctrl-C does."""
    signal.raise_signal(signal.SIGINT)


def by_handler() -> None:
    """Strike as a timeout does: a signal whose handler raises."""
    signal.raise_signal(signal.SIGALRM)


WAYS = {"exception": by_exception, "ctrl-c": by_signal, "timeout": by_handler}


HERE = str(Path(isostep.__file__).parent)


class _Tracer:
    """Counts the instructions of the package that a call runs, and strikes at one of them."""

    def __init__(self, at: int | None, strike: Callable[[], None]) -> None:
        self.seen, self._at, self._strike = 0, at, strike

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(HERE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            self.seen += 1
            if self.seen == self._at:
                sys.settrace(None)
                self._strike()
        return self


def instructions(call: Callable[[], Any], at: int | None, strike: Callable[[], None]) -> int:
    """How many instructions of the package `call` runs, or ran until it was struck.

    Args:
        at: the number of the instruction to strike at; None: none.
        strike: what happens there.
    """
    tracer = _Tracer(at, strike)
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        call()
    finally:
        sys.settrace(before)
    return tracer.seen


def places(length: int, count: int, seed: int) -> Iterator[int]:
    """Places of a step, of which every part has its share."""
    chance = random.Random(seed)
    for k in range(count):
        low, high = length * k // count, length * (k + 1) // count
        yield chance.randint(low + 1, max(low + 1, high))


def check(make: Callable[[], Training], steps: int, count: int, seed: int = 0) -> None:
    """Strike the step that follows `steps` others at `count` places, and look at what is left.

    Args:
        make: the same training from its start, each time anew.

    Raises:
        AssertionError: something is left between two steps, or does not go on from there.
    """
    expected: list[dict[str, bytes]] = []
    whole = make()
    for taken in range(steps + 3):
        expected.append(whole.snapshot())
        whole.step(taken)
    expected.append(whole.snapshot())

    measured = _after(make, steps)
    length = instructions(partial(measured.step, steps), None, by_exception)
    handler = signal.getsignal(signal.SIGALRM)
    signal.signal(signal.SIGALRM, lambda *_: by_exception())
    try:
        for k, place in enumerate(places(length, count, seed)):
            name = list(WAYS)[k % len(WAYS)]
            _strike(_after(make, steps), steps, place, name, expected)
    finally:
        signal.signal(signal.SIGALRM, handler)


def _after(make: Callable[[], Training], steps: int) -> Training:
    training = make()
    for taken in range(steps):
        training.step(taken)
    return training


def _strike(
    training: Training, steps: int, place: int, way: str, expected: list[dict[str, bytes]]
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    where = f"instruction {place}, {way}"
    # Libraries turn what is raised within them into errors of their own.
    with contextlib.suppress(BaseException):
        instructions(partial(training.step, steps), place, WAYS[way])
    assert signal.getsignal(signal.SIGINT) is handler, where
    left = training.snapshot()
    done = left == expected[steps + 1]
    assert done or left == expected[steps], f"{where}: {_changed(left, expected)}"
    for taken in range(steps + done, steps + done + 2):
        training.step(taken)
        after = "done" if done else "not begun"
        assert training.snapshot() == expected[taken + 1], f"{where}, {after}"


def _changed(left: dict[str, bytes], expected: list[dict[str, bytes]]) -> str:
    states = {
        name: [k for k, known in enumerate(expected) if known.get(name) == value]
        for name, value in left.items()
    }
    return f"after how many steps each part is: {states}"
