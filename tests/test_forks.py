"""Forks at any moment of an import, of a compilation and of a step: no child hangs or is wrong."""

from __future__ import annotations

import os

import pytest

from .fuzzing import runs
from .subprocesses import run

SOURCE = """
import json, os, random, signal, threading, time, traceback
import numpy as np

def work():
    import isostep
    params = {"w": np.ones(60_000, np.float32)}
    optimizer = isostep.AdamW(params, lr=0.5, weight_decay=0.0)
    for _ in range(3):
        optimizer.step({"w": np.ones(60_000, np.float32)})
    return params["w"].tobytes()

def busy():
    while not done.is_set():
        work()

done = threading.Event()
other = threading.Thread(target=busy)
if not IMPORTS:
    work()
other.start()
random.seed(SEED)
children = []
for _ in range(FORKS):
    time.sleep(random.uniform(0.0, 0.03))
    child = os.fork()
    if not child:
        signal.alarm(120)  # ends it if it hangs
        code = 1
        try:
            code = 0 if work() == work() == np.full(60_000, -0.5, np.float32).tobytes() else 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    children.append(child)
found = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
done.set()
other.join()
print(json.dumps(found))
"""


def forks(imports: bool, seed: int, count: int, **environment: str) -> list[int]:
    source = SOURCE.replace("IMPORTS", str(imports)).replace("SEED", str(seed))
    return run(source.replace("FORKS", str(count)), warnings="ignore", **environment)


@pytest.mark.fuzz
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_fork_at_any_moment_of_a_step() -> None:
    count = runs(30)
    assert forks(False, 0, count) == [0] * count


@pytest.mark.fuzz
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("cold", [False, True])
def test_a_fork_at_any_moment_of_an_import(cold: bool, tmp_path: object) -> None:
    """And of the first step, which loads kernels, or compiles them."""
    environment = {"ISOSTEP_CACHE_DIR": str(tmp_path)} if cold else {}
    for seed in range(max(1, runs(8) // 8)):
        assert forks(True, seed, 8, **environment) == [0] * 8
