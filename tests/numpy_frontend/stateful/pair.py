"""A world and the law that it is held to, in each step anew."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from isostep import GradientError, ParameterError, StateError

from ...fuzzing import Line
from ...interruptions import Struck, by_exception, instructions
from ..edits import SHAPE
from .edits import EDITS
from .gradients import ALL, given, in_memory_of_the_step
from .world import DTYPES, GROUPS, KINDS, OPTIONS, SHAPES, Nothing, World, seen

FIRST = (len(OPTIONS), len(GROUPS), len(KINDS) + 1, 4, 8)
NUMBERS = max(24, len(ALL))


class Pair:
    """An optimizer that is edited, beside one that is made anew for each step.

    Args:
        line: numbers of options, groups, dtype (the last: of each kind), how many parameters more,
            and the seed.
    """

    def __init__(self, line: Line) -> None:
        options, groups, dtype, count, seed = line.numbers
        self.world = w = World(OPTIONS[options], GROUPS[groups], seed)

        def array(k: int) -> Any:
            kind = KINDS[(dtype if dtype < len(KINDS) else k) % len(KINDS)]
            return w.values(SHAPES[(seed + k) % len(SHAPES)], DTYPES[kind])

        room = w.values((10, 6), np.float32)
        params: dict[str, Any] = {"w": w.values(SHAPE, np.float32)}
        params["block"] = [array(k) for k in range(1 + count)]
        params["inner"] = {"room": room[2:8], "1": array(5).copy(order="F")}
        w.rooms["inner.room"] = room
        w.begin(params)

    def do(self, line: Line) -> None:
        """An edit, or a step."""
        i, k = line.numbers
        if line.what == "step":
            self._step(i, k)
            return
        try:
            EDITS[line.what](self.world, i, k)
        except Nothing:
            pass
        except StateError:  # what reads slots refuses those that have become others
            assert self.world.bad_slots()

    def _step(self, i: int, k: int) -> None:
        w = self.world
        grads, refused = given(w, i, k)
        aliased = k % 6 == 5 and not refused
        if aliased:
            in_memory_of_the_step(w, grads, k)
        expected = self._expected(grads, refused)
        before = w.snapshot()
        copies = {n: None if g is None else np.array(g) for n, g in grads.items() if not refused}
        how = _plain if aliased else HOW[k % len(HOW)]
        scale = 4.0 if k % 5 == 0 else 1.0
        if expected:
            try:
                w.optimizer.step(grads, loss_scale=scale)
            except tuple(expected):
                _same(before, w.snapshot())
                return
            raise AssertionError(f"not refused: {w.bad()}, {w.bad_slots()}")
        self._follow(how, grads, copies, scale, before)

    def _expected(self, grads: dict[str, Any], refused: bool) -> list[type[Exception]]:
        """The errors of which one is to be raised, if any."""
        w = self.world
        stepped = {name for name, g in grads.items() if g is not None}
        if w.steps_all:
            stepped = set(w.forms)
        expected: list[type[Exception]] = [GradientError] if refused else []
        if stepped & w.bad():
            expected.append(ParameterError)
        if stepped & w.bad_slots():
            expected.append(StateError)
        return expected

    def _follow(
        self, how: Any, grads: Any, copies: Any, scale: float, before: dict[str, Any]
    ) -> None:
        """A step that nothing is wrong with."""
        w = self.world
        if w.bad_slots():
            w.optimizer.step(grads, loss_scale=scale)  # the state cannot be read, but others step
            return
        params, twin = w.twin(w.optimizer.state_dict())
        before_of_twin = dict(seen(twin, _copied(params)))
        reports: list[Any] = []
        errors: list[Any] = []

        def ours() -> None:
            try:
                reports.append(w.optimizer.step(grads, loss_scale=scale))
            except BaseException as error:
                errors.append(error)

        def theirs() -> Any:
            try:
                return twin.step(copies, loss_scale=scale)
            except GradientError as error:
                return error

        times = how(ours)
        assert all(isinstance(error, GradientError | Struck) for error in errors), errors
        changed = w.snapshot() != before
        found = [theirs() for _ in range(times)]
        entries = {n: a for n, a in w.entries().items() if n in params and n not in w.bad()}
        params = {n: a for n, a in params.items() if n in entries}
        now = dict(seen(w.optimizer, entries))
        after = dict(seen(twin, params))
        struck = any(isinstance(error, Struck) for error in errors)
        if struck and not _alike(now, after):
            after = {n: v for n, v in before_of_twin.items() if n in now}
        elif not struck:
            assert len(reports) + len(errors) == times
            assert sorted(map(repr, found)) == sorted(map(repr, (*reports, *errors)))
            assert not (changed and errors)
        assert _alike(now, after), _difference(now, after)


def _plain(step: Callable[[], None]) -> int:
    step()
    return 1


def _in_a_thread(step: Callable[[], None]) -> int:
    thread = threading.Thread(target=step)
    thread.start()
    thread.join()
    return 1


def _in_two_threads(step: Callable[[], None]) -> int:
    threads = [threading.Thread(target=step) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 2


def _struck(place: int) -> Callable[[Callable[[], None]], int]:
    def strike(step: Callable[[], None]) -> int:
        instructions(step, place, by_exception)
        return 1

    return strike


HOW = (_plain, _in_a_thread, _in_two_threads, _plain, _struck(90), _struck(700), _struck(1500))


def _copied(params: dict[str, Any]) -> dict[str, Any]:
    return {name: array.copy() for name, array in params.items()}


def _same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before == after, [name for name in before if before[name] != after.get(name)]


def _bits(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    return value.dtype.name, value.shape, np.asarray(value).tobytes()


def _alike(now: dict[str, Any], after: dict[str, Any]) -> bool:
    return not _difference(now, after)


def _difference(now: dict[str, Any], after: dict[str, Any]) -> list[Any]:
    assert now.keys() == after.keys(), now.keys() ^ after.keys()
    return [(n, now[n], after[n]) for n in now if _bits(now[n]) != _bits(after[n])]
