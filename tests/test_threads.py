"""Laws of running on several threads, in forked children and beside other Python threads."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import pytest

import isostep
from isostep.compile import machine_code
from isostep.engines import threads
from isostep.lock import Lock

from .subprocesses import run
from .table import BY_NAME, Config, named
from .turns import at_once

LARGE = 300_001  # several chunks, so that there is work for several threads


def digest(config: Config, steps: int = 5) -> str:
    """The bits of parameters and slots after some steps."""
    random = np.random.default_rng(7)
    params = {
        "flat": random.normal(size=LARGE).astype(np.float32),
        "matrix": random.normal(size=(700, 300)).astype(np.float32),
    }
    optimizer = config.optimizer(params)
    for _ in range(steps):
        grads = {n: random.normal(size=p.shape).astype(np.float32) for n, p in params.items()}
        optimizer.step(grads)
    found = hashlib.sha256()
    for name, p in params.items():
        for array in (p, *optimizer.slots(name).values()):
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


CONFIGS = named("adam", "clip-global_norm-torch", "adafactor-torch")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_forked_child_steps_serially_and_to_the_same_bits(config: Config) -> None:
    """The parent has used the thread pool, which does not survive the fork."""
    expected = digest(config)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            serial = threads.thread_count() == 1
            os.write(write, f"{serial} {digest(config)}".encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as answer:
        said = answer.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert said == f"True {expected}"
    assert digest(config) == expected  # and the parent goes on with its threads


def test_two_optimizers_may_step_in_two_python_threads_at_once() -> None:
    expected = {config.name: digest(config, steps=20) for config in CONFIGS}
    found: dict[str, str] = {}
    ready = threading.Barrier(2 * len(CONFIGS))

    def work(config: Config, key: str) -> None:
        ready.wait()
        found[key] = digest(config, steps=20)

    workers = [
        threading.Thread(target=work, args=(config, f"{config}/{k}"))
        for config in CONFIGS
        for k in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert found == {f"{name}/{k}": bits for name, bits in expected.items() for k in range(2)}


@pytest.mark.parametrize("engine", ["native", "array"])
def test_threads_that_step_one_optimizer_take_turns(engine: Any) -> None:
    """With others that read and set it: every count is a count of whole steps."""
    steps, workers = 30, 3
    params = {f"p{k}": np.zeros(50_000 if k < 3 else 7) for k in range(20)}
    grads = {name: np.ones_like(p) for name, p in params.items()}
    optimizer = isostep.SGD(params, lr=1.0, momentum=0.5, ema=0.5, engine=engine)

    def look() -> None:
        optimizer.set(lr=1.0)
        state = optimizer.state_dict()
        counts = {entry["step"] for entry in state["parameters"].values()}
        assert counts == {state["iteration"]}
        if state["iteration"]:
            moments = [e["slots"]["momentum_buffer"] for e in state["parameters"].values()]
            assert len(np.unique(np.concatenate(moments))) == 1
        copy.deepcopy(optimizer).step(grads)

    at_once(lambda: optimizer.step(grads), look, steps, workers)
    assert optimizer.iteration == steps * workers
    alone = {"p": np.zeros(1)}
    twin = isostep.SGD(alone, lr=1.0, momentum=0.5, ema=0.5, engine=engine)
    for _ in range(steps * workers):
        twin.step({"p": np.ones(1)})
    assert all((p == alone["p"]).all() for p in params.values())


COLD = """
import json, threading
import numpy as np
import isostep
results, errors = {}, []
def work(rule):
    try:
        p = {"p": np.ones(100_000)}
        optimizer = isostep.Optimizer(rule, p, lr=0.5)
        for _ in range(20):
            optimizer.step({"p": np.ones(100_000)})
        results[rule] = p["p"][:3].tolist()
    except BaseException as error:
        errors.append(repr(error))
workers = [threading.Thread(target=work, args=(r,)) for r in ("SGD", "Adagrad", "SGD", "Adagrad")]
[w.start() for w in workers]
[w.join() for w in workers]
print(json.dumps({"errors": errors, "sgd": results.get("SGD"), "done": sorted(results)}))
"""


def test_kernels_may_be_compiled_in_several_python_threads_at_once(tmp_path: object) -> None:
    """One thread imports Numba to compile while others ask it for the number of threads."""
    found = run(COLD, ISOSTEP_CACHE_DIR=str(tmp_path))
    assert found == {"errors": [], "sgd": [-9.0] * 3, "done": ["Adagrad", "SGD"]}


def test_one_kernel_that_several_threads_ask_for_is_built_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def slowly(source: str, flushing: int | None) -> str:
        asked.append(source)
        time.sleep(0.05)
        return source.upper()

    monkeypatch.setattr(machine_code, "_build", slowly)
    monkeypatch.setattr(machine_code, "_kernels", {})
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(machine_code.build, ["a"] * 8)) == ["A"] * 8
    assert asked == ["a"]


def test_what_fails_to_build_in_a_thread_fails_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: str, flushing: int | None) -> None:
        raise RuntimeError(source)

    monkeypatch.setattr(machine_code, "_build", fail)
    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="a kernel"):
        pool.submit(machine_code.build, "a kernel").result()


def holding(lock: Lock) -> threading.Event:
    """Have another thread hold a lock until the event is set."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait()

    threading.Thread(target=hold, daemon=True).start()
    held.wait()
    return done


def is_free(lock: Lock) -> bool:
    found: list[bool] = []

    def ask() -> None:
        with lock:
            found.append(True)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout=0.2)
    return bool(found)


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda lock: pickle.loads(pickle.dumps(lock))]
)
def test_the_copy_of_a_lock_is_free(duplicate: Callable[[Lock], Lock]) -> None:
    lock = Lock()
    done = holding(lock)
    assert not is_free(lock)
    assert is_free(duplicate(lock))
    done.set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_child_finds_locks_of_other_threads_free_and_keeps_its_own() -> None:
    others, own = Lock(), Lock()
    done = holding(others)
    with own:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = 0 if is_free(others) and not is_free(own) else 2
            finally:
                os._exit(status)
    done.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_half_imported_numba_does_not_stop_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread is in the middle of `import numba`: its module is there, its names are not."""
    import sys
    from types import ModuleType

    monkeypatch.setitem(sys.modules, "numba", ModuleType("numba"))
    assert threads.thread_count() >= 1


def test_the_number_of_threads_follows_numba() -> None:
    most = numba.get_num_threads()
    try:
        for count in {1, most}:
            numba.set_num_threads(count)
            assert threads.thread_count() == count
    finally:
        numba.set_num_threads(most)


def test_the_bits_do_not_depend_on_the_number_of_threads_set_in_between() -> None:
    most = numba.get_num_threads()
    expected = digest(BY_NAME["clip-global_norm-torch"])
    try:
        numba.set_num_threads(1)
        assert digest(BY_NAME["clip-global_norm-torch"]) == expected
    finally:
        numba.set_num_threads(most)


COUNT = """
import json, sys
from isostep.engines.threads import thread_count
before = thread_count()
imported = "numba" in sys.modules
import numba
numba.set_num_threads(2)
print(json.dumps([before, imported, thread_count()]))
"""


@pytest.mark.parametrize("count", [2, 3])
def test_the_number_of_threads_follows_the_environment_before_and_after_numba_is_there(
    count: int,
) -> None:
    assert run(COUNT, NUMBA_NUM_THREADS=str(count)) == [count, False, 2]


def test_by_default_every_processor_that_this_process_may_use_works() -> None:
    source = "import json; from isostep.engines.threads import thread_count\nprint(thread_count())"
    assert run(source, NUMBA_NUM_THREADS="") == len(os.sched_getaffinity(0))


WORK = """
import json, os
import numpy as np
import isostep
from isostep.engines import threads
p = {"p": np.ones(2_000_000, np.float32)}
optimizer = isostep.Adam(p)
optimizer.step({"p": np.ones_like(p["p"])})
print(json.dumps([len(os.listdir("/proc/self/task")), threads.thread_count()]))
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux' list of threads")
def test_a_step_wakes_no_more_threads_than_it_was_given() -> None:
    one, two = (run(WORK, NUMBA_NUM_THREADS=n, OPENBLAS_NUM_THREADS="1") for n in ("1", "2"))
    assert one == [1, 1]
    assert two == [2, 2]
