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
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isostep
from isostep import forks
from isostep.compile import machine_code
from isostep.engines import openmp, processors
from isostep.engines.threads import HOST
from isostep.lock import Lock

from .subprocesses import results, run, start
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
            serial = HOST.count() == 1
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

    def slowly(wanted: Any) -> str:
        asked.append(wanted.source)
        time.sleep(0.05)
        return wanted.source.upper()

    monkeypatch.setattr(machine_code, "_build", slowly)
    monkeypatch.setattr(machine_code, "_kernels", {})
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(machine_code.build, ["a"] * 8)) == ["A"] * 8
    assert asked == ["a"]


def test_what_fails_to_build_in_a_thread_fails_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(wanted: Any) -> None:
        raise RuntimeError(wanted.source)

    monkeypatch.setattr(machine_code, "_build", fail)
    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="kernel"):
        pool.submit(machine_code.build, "kernel").result()


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
def test_a_forked_child_finds_locks_of_other_threads_free_and_keeps_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also of those that do not let go of theirs, for which a fork does not wait for ever."""
    monkeypatch.setattr(forks, "PATIENCE", 0.1)
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


@pytest.mark.parametrize("count", [0, -1, 1.0, "2", True])
def test_a_number_of_threads_is_a_whole_number_of_at_least_one(count: Any) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        isostep.set_num_threads(count)


def test_the_bits_do_not_depend_on_the_number_of_threads_set_in_between() -> None:
    expected = digest(BY_NAME["clip-global_norm-torch"])
    try:
        for count in (1, 3):
            isostep.set_num_threads(count)
            assert digest(BY_NAME["clip-global_norm-torch"]) == expected
    finally:
        isostep.set_num_threads(None)


# -- what a step does to its process ---------------------------------------------------------------

FRONT_ENDS = ("numpy", "torch", "keras", "paddle", "jax")
PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
# What is set before the process starts, and how many threads step then; Paddle sets one itself.
ENVIRONMENTS: dict[str, tuple[dict[str, str], int, int]] = {
    "nothing": ({"OMP_NUM_THREADS": ""}, PROCESSORS, 1),
    "OMP_NUM_THREADS=1": ({"OMP_NUM_THREADS": "1"}, 1, 1),
    "OMP_NUM_THREADS=2": ({"OMP_NUM_THREADS": "2"}, min(2, PROCESSORS), 2),
    "one processor": ({"OMP_NUM_THREADS": "", "ONE_PROCESSOR": "1"}, 1, 1),
}


@pytest.fixture(scope="module")
def workers() -> dict[tuple[str, str], Any]:
    """What each front-end has found under each environment."""
    found: dict[tuple[str, str], Any] = {}
    for name, (environment, _, _) in ENVIRONMENTS.items():
        started = {front: begin(front, environment) for front in FRONT_ENDS}
        said = results(started.values())
        found |= {(name, front): each for front, each in zip(started, said, strict=True)}
    return found


def begin(front: str, environment: dict[str, str]) -> Any:
    source = f"from tests.process_worker import main\nmain({front!r})"
    quiet = {"KERAS_BACKEND": "torch", "JAX_PLATFORMS": "cpu"}
    return start(source, warnings="ignore", **quiet, **environment)


@pytest.mark.skipif(not PROCESSORS, reason="needs Linux' list of processors")
@pytest.mark.parametrize("front", FRONT_ENDS)
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_kernels_run_on_as_many_threads_as_the_framework_is_set_to(
    workers: dict[tuple[str, str], Any], name: str, front: str
) -> None:
    _, others, paddles = ENVIRONMENTS[name]
    found = workers[name, front]["threads"]
    own = ("torch", "keras", "paddle")
    expected: dict[str, Any] = {"as it is": [paddles if front == "paddle" else others]}
    expected |= {"isostep's": [3]}
    if front in own:
        expected |= {"its own, 1": [1], "its own, 3": [3]}
    if front not in ("paddle", "jax"):
        expected |= {"forked": [1]}
    told = found.pop("told", None)
    assert found == expected
    assert front == "jax" or told.startswith(f"{expected['as it is'][0]} thread")


@pytest.mark.skipif(not PROCESSORS, reason="needs Linux' list of processors")
@pytest.mark.parametrize("front", FRONT_ENDS)
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_import_and_a_step_change_nothing_of_the_process(
    workers: dict[tuple[str, str], Any], name: str, front: str
) -> None:
    """Threads, environment, filters, signals, floating-point modes, random states, files; and no
    second OpenMP runtime is loaded beside that of a framework."""
    assert workers[name, front]["changed"] == []


# -- what bounds the number of threads -------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"a/cpu.max": "400000 100000", "cpu.max": "200000 100000"}, 2.0),
        ({"a/b/cpu.max": "50000 100000", "a/cpu.max": "max 100000"}, 0.5),
        ({"a/b/cpu.max": "no number"}, None),
    ],
)
def test_the_share_of_a_control_group_and_of_those_around_it_counts(
    files: dict[str, str], expected: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (groups / "a" / "b").mkdir(parents=True)
    proc.mkdir()
    (proc / "cgroup").write_text("0::/a/b\n")
    for name, text in files.items():
        (groups / name).write_text(text + "\n")
    monkeypatch.setattr(processors, "PROC", proc)
    monkeypatch.setattr(processors, "CGROUPS", groups)
    assert processors.quota() == expected


def test_the_share_of_a_control_group_of_the_first_version_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = tmp_path / "cpu,cpuacct" / "x"
    group.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("4:memory:/x\n3:cpu,cpuacct:/x\n")
    (group / "cpu.cfs_quota_us").write_text("250000\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    monkeypatch.setattr(processors, "PROC", tmp_path)
    monkeypatch.setattr(processors, "CGROUPS", tmp_path)
    assert processors.quota() == 2.5


@pytest.mark.parametrize(
    ("variable", "share", "count", "why"),
    [
        ("", None, 8, "processors"),
        ("3", None, 3, "OMP_NUM_THREADS=3"),
        ("6,2", None, 6, "OMP_NUM_THREADS=6"),
        ("32", None, 8, "processors"),
        ("none", None, 8, "processors"),
        ("0", None, 8, "processors"),
        ("", 2.5, 3, "control group"),
        ("", 0.1, 1, "control group"),
        ("2", 2.5, 2, "OMP_NUM_THREADS=2"),
    ],
)
def test_the_least_of_all_bounds_holds(
    variable: str, share: float | None, count: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr(processors, "_affinity", lambda: 8)
    monkeypatch.setattr(processors, "quota", lambda: share)
    found = processors.usable.__wrapped__()
    assert found.count == count
    assert why in found.why


AFTER_A_FORK = """
import ctypes, json, os, sys
import numpy as np
ctypes.CDLL("libgomp.so.1")
read, write = os.pipe()
if not os.fork():
    import isostep
    p = {"p": np.ones(2_000_000, np.float32)}
    optimizer = isostep.Adam(p)
    optimizer.step({"p": np.ones_like(p["p"])})
    found = [optimizer.plan().threads, len(os.listdir("/proc/self/task"))]
    os.write(write, json.dumps(found).encode())
    os._exit(0)
os.close(write)
print(os.fdopen(read).read())
"""


@pytest.mark.skipif(not PROCESSORS, reason="needs Linux")
def test_an_import_in_a_forked_child_finds_that_it_is_one() -> None:
    """An OpenMP runtime is there, which the parent may have used."""
    told, tasks = run(AFTER_A_FORK, OPENBLAS_NUM_THREADS="1")
    assert told.startswith("1 thread: this process was forked")
    assert tasks == 1


WORK = """
import json, os
import numpy as np
import isostep
p = {"p": np.ones(2_000_000, np.float32)}
optimizer = isostep.Adam(p)
optimizer.step({"p": np.ones_like(p["p"])})
print(json.dumps(len(os.listdir("/proc/self/task"))))
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux' list of threads")
def test_a_step_wakes_no_more_threads_than_it_was_given() -> None:
    given = ("1", "2")
    found = [run(WORK, OMP_NUM_THREADS=n, OPENBLAS_NUM_THREADS="1") for n in given]
    assert found == [1, min(2, PROCESSORS)]


# -- where OpenMP runtimes are ---------------------------------------------------------------------


class Dyld:
    """What macOS' loader tells of the images of a process."""

    images = (b"/usr/lib/libSystem.B.dylib", b"/a b/torch/lib/libomp.dylib", None, b"/x/libompx.so")

    @staticmethod
    def _dyld_image_count() -> int:
        return len(Dyld.images)

    class _dyld_get_image_name:
        restype: Any = None

        def __new__(cls, number: int) -> Any:
            return Dyld.images[number]


def test_macos_tells_of_its_runtimes_by_its_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openmp.sys, "platform", "darwin")
    monkeypatch.setattr(openmp.ctypes, "CDLL", lambda name: Dyld)
    assert openmp.mapped() == [Path("/a b/torch/lib/libomp.dylib")]


@pytest.mark.skipif(not PROCESSORS, reason="needs Linux")
def test_linux_tells_of_its_runtimes_by_its_maps() -> None:
    source = (
        "import ctypes, json\nctypes.CDLL('libgomp.so.1')\n"
        "from isostep.engines import openmp\nprint(json.dumps(list(map(str, openmp.mapped()))))"
    )
    (found,) = run(source)
    assert Path(found).is_file()
    assert Path(found).name.startswith("libgomp.so.1")


@pytest.mark.parametrize(
    "name",
    ["libgomp.so.1", "libgomp-a34b3233.so.1", "libiomp5.so", "libiomp5.dylib", "libiomp5md.dll"],
)
def test_the_runtime_that_a_framework_brings_is_found_whatever_the_system(
    name: str, tmp_path: Path
) -> None:
    assert openmp.runtime_in(tmp_path) is None
    for file in (name, "libcommon.so", "libcompat.so", "libopenvino.so"):
        (tmp_path / file).touch()
    assert openmp.runtime_in(tmp_path) == tmp_path / name
