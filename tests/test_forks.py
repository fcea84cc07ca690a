"""Forks at any moment of an import, of a compilation and of a step: no child hangs or is wrong."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from .fuzzing import runs
from .subprocesses import run

WORK = {
    "numpy": """
def work():
    import isostep
    params = {str(k): np.ones(SIZE, np.float32) for k in range(COUNT)}
    grads = {name: np.ones(SIZE, np.float32) for name in params}
    optimizer = isostep.AdamW(params, lr=0.5, weight_decay=0.0)
    for _ in range(3):
        optimizer.step(grads)
    return list(params.values())
""",
    "torch": """
import torch

def tensors():
    found = [torch.nn.Parameter(torch.from_numpy(np.ones(SIZE, np.float32))) for _ in range(COUNT)]
    for param in found:
        param.grad = torch.from_numpy(np.ones(SIZE, np.float32))
    return found

torch.optim.AdamW(tensors()).step()  # what torch does once would be unfinished in a child

def work():
    import isostep.torch
    params = tensors()
    optimizer = isostep.torch.AdamW(params, lr=0.5, weight_decay=0.0)
    for _ in range(3):
        optimizer.step()
    return [param.detach().numpy() for param in params]
""",
}
"""What is done over and over, by front-end."""

SOURCE = """
import json, os, random, signal, sys, threading, time, traceback
import numpy as np

COUNT = 6  # so that a step has work for several threads
SIZE = 30_000
WORK

def busy():
    while not done.is_set():
        work()

def moment():
    ours = [m for name, m in list(sys.modules.items()) if name.partition(".")[0] == "isostep"]
    if any(getattr(getattr(m, "__spec__", None), "_initializing", False) for m in ours):
        return "import"
    return "step" if ours else "before"

done = threading.Event()
other = threading.Thread(target=busy)
if not IMPORTS:
    work()
other.start()
random.seed(SEED)
children, moments = [], []
for _ in range(FORKS):
    time.sleep(random.uniform(0.0, WAIT))
    moments.append(moment())
    child = os.fork()
    if not child:
        signal.alarm(120)  # ends it if it hangs
        code = 1
        try:
            right = all((array == -0.5).all() for _ in range(2) for array in work())
            code = 0 if right else 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    children.append(child)
found = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
done.set()
other.join()
print(json.dumps([found, moments]))
"""


def forks(
    work: str, imports: bool, seed: int, count: int, wait: float, **environment: str
) -> Counter[str]:
    """Fork at random moments; at what each of them was asked for.

    Args:
        work: of `WORK`.
        imports: whether isostep is yet to be imported.
        seed: of the moments.
        count: how many forks.
        wait: the most seconds between two.
        **environment: of the process.

    Raises:
        AssertionError: a child had wrong numbers, an error, or did not end.
    """
    source = SOURCE.replace("WORK", WORK[work])
    given = {"IMPORTS": imports, "SEED": seed, "FORKS": count, "WAIT": wait}
    for name, value in given.items():
        source = source.replace(name, str(value))
    exits, moments = run(source, warnings="ignore", **environment)
    assert exits == [0] * count, list(zip(exits, moments, strict=True))
    return Counter(moments)


@pytest.mark.fuzz
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("work", WORK)
def test_a_fork_at_any_moment_of_a_step(work: str) -> None:
    if work == "torch":
        pytest.importorskip("torch")
    assert forks(work, False, 0, runs(30), 0.03)["step"]


@pytest.mark.fuzz
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("work", WORK)
def test_a_fork_at_any_moment_of_an_import(work: str, cold: bool, tmp_path: Path) -> None:
    """And of the first step, which loads kernels, or compiles them."""
    if work == "torch":
        pytest.importorskip("torch")
    for seed in range(max(1, runs(8, cost=10 if cold else 1) // 8)):
        environment = {"ISOSTEP_CACHE_DIR": str(tmp_path / str(seed))} if cold else {}
        forks(work, True, seed, 8, 0.3 if cold else 0.03, **environment)


TORN = """
import json, os, threading
from isostep import forks
from isostep.compile import machine_code

forks.PATIENCE = 0.2
held = threading.Event()

def compile_for_ever():
    with machine_code._lock:
        held.set()
        threading.Event().wait()

threading.Thread(target=compile_for_ever, daemon=True).start()
held.wait()
out, into = os.pipe()
child = os.fork()
if not child:
    try:
        BUILD
        said = "compiled"
    except RuntimeError as error:
        said = str(error)
    os.write(into, said.encode())
    os._exit(0)
os.close(into)
print(json.dumps(os.fdopen(out).read()))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
@pytest.mark.parametrize("build", ["build(NEW)", "prepare([(NEW, None)], 2)"])
def test_a_child_of_a_process_that_never_comes_to_rest_says_so_and_does_not_wait(
    build: str, tmp_path: Path
) -> None:
    source = TORN.replace("BUILD", f"machine_code.{build}")
    source = source.replace("NEW", '"def new(low, context): pass"')
    said = run(source, ISOSTEP_CACHE_DIR=str(tmp_path))
    assert "cannot compile kernels: start it by spawn" in said


FAILED = """
import json, os, time, _frozen_importlib
import isostep
lock = _frozen_importlib._get_module_lock("isostep.missing")  # as a failed import leaves it
begun = time.monotonic()
child = os.fork()
if not child:
    os._exit(0)
os.waitpid(child, 0)
print(json.dumps(time.monotonic() - begun))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_fork_does_not_wait_for_an_import_that_has_failed() -> None:
    assert run(FAILED) < 60  # it would wait for its patience, which is twice as long
