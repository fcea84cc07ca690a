"""Laws of compiling by several processes: nothing that happens to one is seen in the kernels."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isostep
from isostep.compile import machine_code, side_by_side, waiting

from .subprocesses import run

Prepare = Callable[[], None]
VALUES = [11, 22, 33, 44]

SOURCE = '''"""{title}"""

from isostep.compile.intrinsics import int64_at


def put(low, high, context):
    int64_at(context)[0] = {value}
'''

# What a worker does instead of its work.
BROKEN = {
    "dies at once": "raise SystemExit(3)",
    "is killed": "import os; os.kill(os.getpid(), 9)",
    "closes its output": "import os, time; os.close(1); time.sleep(60)",
    "hangs": "import time; time.sleep(60)",
    "reads and hangs": "import sys, time; sys.stdin.buffer.read(10); time.sleep(60)",
    "prints rubbish": "print('rubbish ' * 100, flush=True); import time; time.sleep(60)",
    "announces too much": "import os, time; os.write(1, b'\\xff' * 40); time.sleep(60)",
    "announces more than it has": "import os; os.write(1, b'\\0' * 7 + b'\\x09' + b'\\0' * 35)",
    "damages its answer": """
import sys; sys.path[:] = __import__("json").loads(sys.argv[1])
import os; from isostep.compile import worker
os.write(1, (3).to_bytes(8, "big") + bytes(32) + b"abc"); import time; time.sleep(60)""",
    "answers with other code": """
import sys; sys.path[:] = __import__("json").loads(sys.argv[1])
from isostep.compile import machine_code, worker
code = machine_code.compiled
machine_code.compiled = lambda source, *more: (
    machine_code._compile("def other(low, context): pass", {"other": "other"}, {"other": 2}, None))
worker.serve()""",
    "cannot compile": """
import sys; sys.path[:] = __import__("json").loads(sys.argv[1])
sys.modules["numba"] = None
from isostep.compile import worker; worker.serve()""",
}


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Generator[Prepare]:
    """Compile modules for which every process is worth it, with an empty cache; see that they work,
    and that nothing is left."""
    monkeypatch.setenv("ISOSTEP_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(machine_code, "_WORTH", 1e-9)
    monkeypatch.setattr(side_by_side, "PATIENCE", 0.3)
    # A name of its own for each test: what was compiled is known to the process.
    sources = [SOURCE.format(title=tmp_path, value=value) for value in VALUES]

    def prepared(processes: int = 2) -> None:
        machine_code.prepare([(source, None) for source in sources], processes)
        for source, value in zip(sources, VALUES, strict=True):
            assert (source, None) in machine_code._kernels
            word = ctypes.c_int64(0)
            row = (ctypes.c_int64 * 2)(0, 1)
            address = machine_code.build(source).addresses["put"]
            place = ctypes.c_void_p(ctypes.addressof(row))
            entry = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)(address)
            entry(ctypes.addressof(place), None, None, ctypes.addressof(word))
            assert word.value == value

    before = left()
    yield prepared
    assert left() == before


def left() -> Any:
    """What a worker could leave: children, files and threads."""
    found: list[Any] = [sorted(t.name for t in threading.enumerate())]
    if Path("/proc/self/fd").exists():
        found.append(len(os.listdir("/proc/self/fd")))
        children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
        found.append(children.read_text() if children.exists() else "")
    return found


def compiled_slowly(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Compile no faster here than a worker does. What is compiled here is in the list."""
    real, here = machine_code._compile, []

    def compile_slowly(source: str, *more: Any) -> bytes:
        here.append(source)
        end = time.monotonic() + 60
        while not machine_code._made and time.monotonic() < end:
            time.sleep(0.02)
        return real(source, *more)

    monkeypatch.setattr(machine_code, "_compile", compile_slowly)
    return here


def test_workers_compile_some_of_several_kernels(
    prepare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_by_side, "PATIENCE", 60.0)
    here = compiled_slowly(monkeypatch)
    before = machine_code.compilations
    prepare()
    assert machine_code.compilations == before + len(VALUES)
    assert 0 < len(here) < len(VALUES)
    assert len(list(tmp_path.glob("*.kernel"))) == len(VALUES)
    assert not list(tmp_path.glob("*.lock"))


def test_what_workers_compile_need_not_be_kept(
    prepare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes by a pipe."""
    monkeypatch.setattr(side_by_side, "PATIENCE", 60.0)
    monkeypatch.setenv("ISOSTEP_CACHE_DIR", "/proc/nowhere")
    here = compiled_slowly(monkeypatch)
    prepare()
    assert 0 < len(here) < len(VALUES)


@pytest.mark.parametrize("fault", BROKEN)
def test_what_a_worker_fails_at_is_compiled_here(
    fault: str, prepare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    start = side_by_side._start

    def started() -> Any:
        asked.append(start())
        return asked[-1]

    monkeypatch.setattr(side_by_side, "_start", started)
    monkeypatch.setattr(side_by_side, "_START", BROKEN[fault])
    if fault in ("answers with other code", "cannot compile"):
        monkeypatch.setattr(side_by_side, "PATIENCE", 30.0)
    prepare()
    assert [process.returncode is not None for process in asked] == [True]


INTERPRETERS: dict[str, dict[str, Any]] = {
    "no name": {"executable": ""},
    "none": {"executable": None},
    "a program that embeds Python": {"executable": "/bin/true"},
    "frozen": {"frozen": True},
    "not there": {"executable": "/nowhere/python3"},
    "not executable": {"executable": os.devnull + "/python3"},
}


@pytest.mark.parametrize("case", INTERPRETERS)
def test_where_no_interpreter_is_known_everything_is_compiled_here(
    case: str, prepare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in INTERPRETERS[case].items():
        monkeypatch.setattr(sys, name, value, raising=False)
    prepare()


@pytest.mark.parametrize("when", ["compiling", "waiting"])
def test_ctrl_c_leaves_no_worker_and_the_next_step_compiles(
    when: str, prepare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_by_side, "_START", BROKEN["hangs"])
    monkeypatch.setattr(side_by_side, "PATIENCE", 60.0)
    real = machine_code._compile

    def interrupted(*args: Any) -> bytes:
        if when == "compiling":
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(machine_code, "_compile", interrupted)
    timer = threading.Timer(1.5, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    if when == "waiting":
        timer.start()
    with pytest.raises(KeyboardInterrupt):
        prepare()
    timer.cancel()
    monkeypatch.setattr(machine_code, "_compile", real)
    monkeypatch.setattr(side_by_side, "PATIENCE", 0.3)
    prepare()


def test_one_small_kernel_starts_no_process(prepare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_code, "_WORTH", 1.5)
    monkeypatch.setattr(side_by_side, "_start", lambda: pytest.fail("a worker"))
    prepare(16)


WITHOUT = """
import json, sys
sys.modules["torch"] = None
from isostep.compile import machine_code
source = 'def put(low, high, context):\\n    pass\\n'
code = machine_code.compiled(source, None, machine_code._Wanted(source, None).name)
heavy = [n for n in ("torch", "jax", "scipy.linalg", "isostep.torch", "isostep.stepper")
         if sys.modules.get(n)]
print(json.dumps([len(code) > 0, machine_code.compiled(source, None, "another"), heavy]))
"""


def test_a_worker_loads_only_the_compiler_and_compiles_only_what_it_knows_by_the_same_name() -> (
    None
):
    assert run(WITHOUT) == [True, None, []]


# -- saying it -------------------------------------------------------------------------------------


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(waiting, "LONG", 0.05)
    monkeypatch.setattr(waiting, "_said", False)
    return 0.3


def test_a_long_wait_is_said_once(
    slowly: float, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("ISOSTEP_CACHE_DIR", str(tmp_path))
    with caplog.at_level(logging.INFO, "isostep"):
        for _ in range(2):
            with waiting.compiling(["Adafactor", "", "Adafactor"]):
                time.sleep(slowly)
    (record,) = caplog.records
    assert record.getMessage() == (
        "isostep is compiling 3 kernels for this optimizer (Adafactor); kernels are kept in "
        f"{tmp_path}, so that it happens once; `isostep cache warm` does it ahead"
    )


def test_a_short_wait_is_not_said(
    slowly: float, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "LONG", 5.0)
    before = threading.active_count()
    with caplog.at_level(logging.INFO, "isostep"), waiting.compiling(["SGD"]):
        pass
    assert not caplog.records
    assert threading.active_count() == before


def test_a_step_that_compiles_for_long_says_what_for(
    slowly: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOSTEP_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(machine_code, "_kernels", {})
    said: list[list[str]] = []
    monkeypatch.setattr(waiting, "_say", said.append)
    params = {"p": np.ones(5, np.float32), "q": np.ones(5)}
    isostep.AdamW(params).step({n: np.ones_like(p) for n, p in params.items()})
    assert ["AdamW", "AdamW"] in said
