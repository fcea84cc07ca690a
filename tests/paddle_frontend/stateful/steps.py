"""The ways to take a step, in Paddle's world and in isostep's.

Each is a function of a world and a number, and has in `STEPS` what may become of it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import paddle

from ...interruptions import Struck, by_exception, instructions
from ..worlds import World

How = Callable[[World, int], None]


class Stop(Exception):
    """A user's own exception."""


def plain(world: World, k: int) -> None:
    world.optimizer.step()


def minimized(world: World, k: int) -> None:
    if world.grouped and not world.ours:  # Paddle's own fails on groups
        world.optimizer.step()
    else:
        world.optimizer.minimize(paddle.to_tensor(1.0))


def with_closure(world: World, k: int) -> None:
    world.optimizer.step(lambda: 7.0) if world.ours else world.optimizer.step()


def closure_raises(world: World, k: int) -> None:
    def closure() -> float:
        raise Stop

    if world.ours:  # Paddle's own classes take none
        world.optimizer.step(closure)
    raise Stop


def in_a_thread(world: World, k: int) -> None:
    raised: list[BaseException] = []

    def work() -> None:
        try:
            world.optimizer.step()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive(), "another thread holds the lock"
    if raised:
        raise raised[0]


def without_gradients(world: World, k: int) -> None:
    world.optimizer.clear_grad(set_to_zero=False)
    world.optimizer.step()


def with_zeros(world: World, k: int) -> None:
    world.optimizer.clear_grad(set_to_zero=True)
    world.optimizer.step()


def struck(world: World, k: int) -> None:
    """An exception at one of the instructions of the package."""
    if not world.ours:
        world.optimizer.step()
        return
    place = 1 + (1237 * k) % (700, 7000)[k % 2]
    # Paddle turns what is raised within it into errors of its own.
    with contextlib.suppress(Struck, RuntimeError):
        instructions(world.optimizer.step, place, by_exception)


STEPS: tuple[How, ...] = (
    plain,
    plain,
    minimized,
    with_closure,
    closure_raises,
    in_a_thread,
    without_gradients,
    with_zeros,
    struck,
)


def some(k: int, n: int) -> tuple[How, Callable[[World], Any]]:
    """One of the ways, and a step that is taken so."""
    how = STEPS[k % len(STEPS)]
    return how, lambda world: how(world, n)
