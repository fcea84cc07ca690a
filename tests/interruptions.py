"""Exceptions at any place of a step: what every front-end is held to.

A step is run again and again from the same start, and each time an exception strikes at another
place: between two instructions of any Python code that the step runs. What is left must be the
state before the step or the state after it, bit for bit; and the next steps go on from there.
"""

from __future__ import annotations

import contextlib
import random
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any


class Struck(BaseException):
    """The exception that strikes."""


@dataclass(frozen=True)
class Training:
    """An optimizer in the middle of its work.

    Args:
        step: takes one step with gradients that depend only on how many steps were taken.
        snapshot: everything that a step changes, as bytes by name.
    """

    step: Callable[[], Any]
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


class _Tracer:
    """Counts the instructions that a call runs, and strikes at one of them."""

    def __init__(self, at: int | None, strike: Callable[[], None]) -> None:
        self.seen, self._at, self._strike = 0, at, strike

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            self.seen += 1
            if self.seen == self._at:
                sys.settrace(None)
                self._strike()
        return self


def instructions(call: Callable[[], Any], at: int | None, strike: Callable[[], None]) -> int:
    """How many instructions `call` runs, or ran until it was struck.

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


def _places(length: int, count: int, seed: int) -> Iterator[int]:
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
    for _ in range(steps + 3):
        expected.append(whole.snapshot())
        whole.step()
    expected.append(whole.snapshot())

    measured = _after(make, steps)
    length = instructions(measured.step, None, by_exception)
    handler = signal.getsignal(signal.SIGALRM)
    signal.signal(signal.SIGALRM, lambda *_: by_exception())
    try:
        for k, place in enumerate(_places(length, count, seed)):
            name = list(WAYS)[k % len(WAYS)]
            _strike(_after(make, steps), place, name, expected[steps:])
    finally:
        signal.signal(signal.SIGALRM, handler)


def _after(make: Callable[[], Training], steps: int) -> Training:
    training = make()
    for _ in range(steps):
        training.step()
    return training


def _strike(training: Training, place: int, way: str, expected: list[dict[str, bytes]]) -> None:
    handler = signal.getsignal(signal.SIGINT)
    where = f"instruction {place}, {way}"
    # Libraries turn what is raised within them into errors of their own.
    with contextlib.suppress(BaseException):
        instructions(training.step, place, WAYS[way])
    assert signal.getsignal(signal.SIGINT) is handler, where
    left = training.snapshot()
    done = left == expected[1]
    assert done or left == expected[0], f"{where}: {_changed(left, expected)}"
    for known in expected[1 + done : 3 + done]:
        training.step()
        assert training.snapshot() == known, f"{where}, {'after' if done else 'before'} the step"


def _changed(left: dict[str, bytes], expected: list[dict[str, bytes]]) -> str:
    states = {
        name: [k for k, known in enumerate(expected) if known.get(name) == value]
        for name, value in left.items()
    }
    return f"after how many steps each part is: {states}"
