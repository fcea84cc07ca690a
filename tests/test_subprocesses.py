"""Workers of tests leave nothing behind."""

from __future__ import annotations

import pytest

from .subprocesses import results, start


def test_a_worker_that_fails_ends_the_others_and_leaves_no_pipe_open() -> None:
    waiting = "import time; time.sleep(600)"
    workers = [start(source) for source in ("print(1)", "raise ValueError('why')", waiting)]
    with pytest.raises(AssertionError, match="ValueError: why"):
        results(workers)
    for worker in workers:
        assert worker.returncode is not None
        assert worker.stdout is not None
        assert worker.stdout.closed
        assert worker.stderr is not None
        assert worker.stderr.closed


def test_the_last_lines_come_in_order() -> None:
    assert results([start("print('a', flush=True); print(1)"), start("print([2])")]) == [1, [2]]
