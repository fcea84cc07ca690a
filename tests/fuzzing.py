"""Stateful tests: random edits of two worlds that must stay alike.

A *world* is an optimizer with all that its user holds. An edit is a function of a world and two
small numbers, so that both worlds get the same edit, hypothesis can shrink it, and a line of a
trace replays it. A machine runs in a process of its own, because what it looks for may end the
process: each edit is written to the trace before it is done.

The number of runs is `$ISOSTEP_FUZZ`, which `make fuzz` sets.
"""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

ROOT = Path(__file__).parent.parent
EDITS = 10
"""How many edits a run has at most."""


class Line(NamedTuple):
    """One line of a trace: what was done, and the numbers that say to what."""

    what: str
    numbers: tuple[int, ...]


class Pair(Protocol):
    """Two worlds that get the same edits; `do` raises where they are no longer alike."""

    def do(self, line: Line, /) -> None: ...


def runs(default: int, cost: int = 1) -> int:
    """How many runs a test has: `$ISOSTEP_FUZZ`, else `default`.

    Args:
        default: in `make test`.
        cost: how many usual runs one of this test stands for, roughly.
    """
    asked = os.environ.get("ISOSTEP_FUZZ")
    return max(1, int(asked) // cost) if asked else default


def many(default: int) -> settings:
    """The settings of a property test: new examples in each long run, the same in `make test`."""
    return settings(
        max_examples=runs(default), deadline=None, derandomize="ISOSTEP_FUZZ" not in os.environ
    )


class Trace:
    """The lines of the present run, in a file that outlives the process."""

    def __init__(self, path: str | None) -> None:
        self._file = os.open(path or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def begin(self) -> None:
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)

    def add(self, line: Line) -> None:
        os.write(self._file, f"{json.dumps([line.what, *line.numbers])}\n".encode())


def read(path: Path) -> list[Line]:
    """The lines of a trace."""
    lines = [json.loads(text) for text in path.read_text().splitlines() if text.strip()]
    return [Line(what, tuple(numbers)) for what, *numbers in lines]


def write(path: Path, lines: Iterable[Line]) -> None:
    """Write a trace."""
    path.write_text("".join(f"{json.dumps([line.what, *line.numbers])}\n" for line in lines))


def replay(make: Callable[[Line], Pair], lines: Sequence[Line]) -> None:
    """Do again what a trace says; its first line makes the pair."""
    pair = make(lines[0])
    for line in lines[1:]:
        pair.do(line)


def machine(
    make: Callable[[Line], Pair],
    first: Sequence[int],
    edits: Iterable[str],
    steps: int,
    trace: Trace,
) -> type[RuleBasedStateMachine]:
    """A state machine over the edits.

    Args:
        make: makes the pair from the first line, `Line("make", numbers)`.
        first: how many values each of its numbers has.
        edits: names that `Pair.do` knows. Each is followed by up to two lines `"step"`.
        steps: how many values a number of a line has.
        trace: where the lines go.
    """
    small = st.integers(0, steps - 1)

    def begin(self: Any, numbers: tuple[int, ...]) -> None:
        trace.begin()
        line = Line("make", tuple(numbers))
        trace.add(line)
        self.pair = make(line)

    def edit(name: str) -> Any:
        def act(self: Any, i: int, k: int, then: list[tuple[int, int]]) -> None:
            for line in [Line(name, (i, k)), *(Line("step", numbers) for numbers in then)]:
                trace.add(line)
                self.pair.do(line)

        act.__name__ = name
        after = st.lists(st.tuples(small, small), max_size=2)
        return rule(i=small, k=small, then=after)(act)

    numbers = st.tuples(*[st.integers(0, n - 1) for n in first])
    body: dict[str, Any] = {name: edit(name) for name in edits}
    body["begin"] = initialize(numbers=numbers)(begin)
    return type("Machine", (RuleBasedStateMachine,), body)


def main(
    make: Callable[[Line], Pair], first: Sequence[int], edits: Iterable[str], steps: int
) -> None:
    """What a worker does: `RUNS TRACE` runs the machine, `replay TRACE` one trace."""
    faulthandler.enable()
    command, path = sys.argv[1:3]
    if command == "replay":
        replay(make, read(Path(path)))
        return
    count = int(command)
    found = machine(make, first, edits, steps, Trace(path))
    run_state_machine_as_test(
        found,
        settings=settings(
            many(count),
            max_examples=count,
            stateful_step_count=EDITS,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
            database=None,
            report_multiple_bugs=False,
        ),
    )


def check(worker: str, count: int, folder: Path) -> None:
    """Run a worker in a process of its own, and fail with the trace of the run that failed.

    Args:
        worker: the module whose `main` is the one above.
        count: how many runs.
        folder: where the trace is kept.
    """
    path = folder / "trace"
    done = _run(worker, str(count), path)
    if done.returncode >= 0:
        assert done.returncode == 0, f"{path.read_text()}\n{done.stdout}\n{done.stderr[-8000:]}"
        return
    # Nobody was left to shrink what ended the process.
    lines = _shrunk(worker, read(path), folder / "shorter")
    text = "\n".join(json.dumps([line.what, *line.numbers]) for line in lines)
    raise AssertionError(
        f"{worker} was ended by signal {-done.returncode}; it is, too, by\n{text}\n"
        f"{done.stderr[-8000:]}"
    )


def _run(worker: str, command: str, path: Path) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", worker, command, str(path)]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)


def _shrunk(worker: str, lines: list[Line], path: Path) -> list[Line]:
    """What still ends a process, without the lines that are not needed for it."""
    at = 1
    while at < len(lines):
        shorter = lines[:at] + lines[at + 1 :]
        write(path, shorter)
        if _run(worker, "replay", path).returncode < 0:
            lines = shorter
        else:
            at += 1
    return lines
