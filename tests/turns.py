"""Python threads that step one optimizer: what every front-end is held to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def at_once(step: Callable[[], Any], look: Callable[[], Any], steps: int, workers: int = 3) -> None:
    """Step from several threads at once, while as many others look.

    Args:
        step: one step.
        look: reads the optimizer, again and again, and raises if that is not as it must be.
        steps: that each thread takes.
        workers: how many threads step.
    """
    ready, over = threading.Barrier(2 * workers), threading.Event()

    def stepping() -> None:
        ready.wait()
        for _ in range(steps):
            step()

    def looking() -> None:
        ready.wait()
        while not over.is_set():
            look()

    with ThreadPoolExecutor(2 * workers) as pool:
        looks = [pool.submit(looking) for _ in range(workers)]
        try:
            for done in [pool.submit(stepping) for _ in range(workers)]:
                done.result(timeout=120)
        finally:
            over.set()
        for done in looks:
            done.result(timeout=120)
