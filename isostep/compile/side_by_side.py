"""Several kernels at once: this process compiles some, and processes that it starts the others.

llvmlite has one lock around LLVM, so threads would compile one after the other. A worker is a
fresh interpreter, not a fork of a process that may be training. Whatever goes wrong with one (it
cannot be started, dies, hangs, writes something else) leaves its kernels to this process.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from isostep.compile import worker

PATIENCE = 20.0
"""Seconds that workers are waited for when there is nothing else to do."""
_ROOT = str(Path(__file__).parents[2])  # where `isostep` is imported from
_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from isostep.compile.worker import serve
serve()
"""

_Job = TypeVar("_Job")
Ask = Callable[[bytes], "bytes | None"]
"""A request to a worker, and its answer; None: it has failed."""


def interpreter() -> str | None:
    """What runs Python as this process does; None where that is not known: in a frozen program,
    and in one that embeds Python, `sys.executable` is that program, or nothing."""
    path = sys.executable
    if getattr(sys, "frozen", False) or not path:
        return None
    return path if Path(path).name.lower().startswith(("python", "pypy")) else None


class Worker:
    """A process that compiles. It is started when it is asked first."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False
        self._lock = threading.Lock()

    def ask(self, request: bytes) -> bytes | None:
        """See `Ask`. A worker that has failed once is asked no more."""
        try:
            process = self._started()
            if process is not None:
                assert process.stdin is not None
                assert process.stdout is not None
                worker.send(process.stdin, request)
                return worker.receive(process.stdout) or None
        except Exception:  # whatever it is, this process compiles as well
            self.end()
        return None

    def _started(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._process is None and not self._ended:
                self._process = _start()
            return None if self._ended else self._process

    @property
    def ended(self) -> bool:
        """Whether it is no use any more."""
        return self._ended

    def end(self) -> None:
        """Stop the process, whatever it does, and wait until it is gone."""
        with self._lock:
            self._ended = True
            process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def close(self) -> None:
        """After `end`, and when nobody asks any more."""
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):
                    pipe.close()


def _start() -> subprocess.Popen[bytes]:
    """Start a worker.

    Raises:
        OSError: there is no interpreter.
    """
    python = interpreter()
    if python is None:
        raise OSError("no interpreter is known")
    path = json.dumps([_ROOT, *map(str, sys.path)])
    # Ctrl-C is for this process, which ends its workers itself.
    alone: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        alone = {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
    process: Any = subprocess.Popen(
        # Isolated, and without `site`: nothing of the user's runs but what compiles.
        [python, "-I", "-S", "-c", _START, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        **alone,
    )
    return process


def share(
    jobs: Sequence[_Job],
    workers: int,
    here: Callable[[_Job], None] | None,
    there: Callable[[_Job, Ask, threading.Event], None],
    patience: float | None = None,
) -> None:
    """Do all jobs, each here or by a worker.

    Args:
        jobs: in the order in which they are begun.
        workers: how many processes help; they are gone in the end.
        here: does a job in this thread; None: it does nothing but wait.
        there: does one in a thread that does nothing but wait; it asks a worker, and gives up once
            the event is set. What it has not done is to be done by the caller.
        patience: seconds that workers are waited for when there is nothing else to do; None:
            `PATIENCE`.
    """
    left, stop = deque(jobs), threading.Event()
    crew = [Worker() for _ in range(workers)]

    def waiting(each: Worker) -> None:
        while not (stop.is_set() or each.ended):
            try:
                job = left.popleft()
            except IndexError:
                return
            there(job, each.ask, stop)

    threads = [
        threading.Thread(target=waiting, args=(w,), name="isostep worker", daemon=True)
        for w in crew
    ]
    started: list[threading.Thread] = []
    try:
        with contextlib.suppress(RuntimeError):  # no more threads
            for thread in threads:
                started.append(thread)
                thread.start()
        while here is not None and left:
            with contextlib.suppress(IndexError):
                here(left.popleft())
        end = time.monotonic() + (PATIENCE if patience is None else patience)
        for thread in started:
            if thread.ident is not None:
                thread.join(max(0.0, end - time.monotonic()))
    finally:
        stop.set()
        for each in crew:
            each.end()
        for thread in started:
            if thread.ident is not None:
                thread.join()
        for each in crew:
            each.close()
