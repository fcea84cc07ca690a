"""What is run as on Windows, by `test_windows.py`."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isostep
from isostep.compile import machine_code
from isostep.engines import objects, openmp, threads
from isostep.interrupts import Delayed

from .windows import ABSENT_MODULES, is_open

# Texts are read in UTF-8 whatever the system's own encoding is.
pytestmark = [
    pytest.mark.filterwarnings("ignore::EncodingWarning"),
    pytest.mark.filterwarnings("error::EncodingWarning:isostep"),
]


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ISOSTEP_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process had no kernels."""
    monkeypatch.setattr(machine_code, "_kernels", {})


def step(size: int = 100, **options: Any) -> isostep.Optimizer:
    params = {"p": np.ones(size, np.float32)}
    optimizer = isostep.SGD(params, lr=0.5, engine="native", **options)
    optimizer.step({"p": np.ones(size, np.float32)})
    assert (params["p"] == 0.5).all()
    assert optimizer.ran == ["native flat float32"]
    return optimizer


def test_the_process_is_as_on_windows(tmp_path: Path) -> None:
    gone = ("fork", "register_at_fork", "sched_getaffinity", "getuid", "fchmod", "O_NOFOLLOW")
    assert sys.platform == "win32"
    assert not any(hasattr(os, name) for name in gone)
    assert not hasattr(signal, "pthread_sigmask")
    assert not os.path.exists("/proc/self/maps")
    assert not os.path.exists("/dev/shm")
    for name in ABSENT_MODULES:
        with pytest.raises(ImportError):
            __import__(name)
    with pytest.raises(TypeError):
        ctypes.CDLL(None)
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"a")
    b.write_bytes(b"b")
    assert (a.stat().st_uid, a.stat().st_mode & 0o777, a.stat().st_size) == (0, 0o666, 1)
    with b.open("rb"):
        assert is_open(b)
        with pytest.raises(PermissionError):
            os.replace(a, b)
        with pytest.raises(PermissionError):
            b.unlink()
    with pytest.raises(FileExistsError):
        os.rename(a, b)
    os.replace(a, b)
    assert b.read_bytes() == b"a"


def test_a_kernel_is_compiled_and_kept_and_found_again(directory: Path, cold: None) -> None:
    before = machine_code.compilations
    step()
    compiled = machine_code.compilations
    assert compiled > before
    assert list(directory.rglob("*.kernel"))
    machine_code._kernels.clear()
    step()
    assert machine_code.compilations == compiled


def test_entries_that_others_have_open_are_used_and_stay(directory: Path, cold: None) -> None:
    step()
    before = machine_code.compilations
    with contextlib.ExitStack() as others:
        for entry in directory.rglob("*.kernel"):
            others.enter_context(entry.open("rb"))
        machine_code._kernels.clear()
        step()
    assert machine_code.compilations == before


def test_a_damaged_entry_that_others_have_open_costs_its_compilation_and_is_replaced_later(
    directory: Path, cold: None
) -> None:
    """And trying leaves nothing behind."""
    step()
    entries = list(directory.rglob("*.kernel"))
    compilations: list[int] = []
    files: list[list[Path]] = []

    def again() -> None:
        machine_code._kernels.clear()
        before = machine_code.compilations
        step()
        compilations.append(machine_code.compilations - before)
        files.append(sorted(directory.rglob("*")))

    with contextlib.ExitStack() as others:
        for entry in entries:
            entry.write_bytes(b"damaged")
            others.enter_context(entry.open("rb"))
        again()
        again()
    assert compilations == [len(entries)] * 2
    assert files[0] == files[1]
    again()
    again()
    assert compilations[2:] == [len(entries), 0]


@pytest.mark.parametrize("count", [None, 1, 2, 3, 8, 50])
def test_numbas_pool_steps_with_any_number_of_threads(count: int | None) -> None:
    """Windows has no runtime with GNU's entry points, and one thread to a place of the pool."""
    assert openmp.team(None) is None
    assert openmp.mapped() == []
    assert threads._pool() is not None
    isostep.set_num_threads(count)
    try:
        plan = step(5_000_000).plan()
    finally:
        isostep.set_num_threads(None)
    assert f"{count or os.cpu_count()} thread" in plan.threads


def test_threads_enter_the_pool_in_turn() -> None:
    workers = [threading.Thread(target=step, args=(3_000_000,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
        assert not worker.is_alive()


def test_an_interrupt_waits_for_the_end_of_a_step() -> None:
    ended: list[bool] = []

    def interrupted() -> None:
        with Delayed():
            signal.raise_signal(signal.SIGINT)
            ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert ended


def test_what_cannot_be_asked_of_the_system_is_not_taken_to_be_there() -> None:
    assert objects.mapped(id(object()), 1) is False


def test_the_front_ends_of_frameworks_that_windows_has() -> None:
    import jax
    import torch

    import isostep.jax
    import isostep.torch

    parameter = torch.nn.Parameter(torch.ones(100_000))
    parameter.grad = torch.ones_like(parameter)
    optimizer = isostep.torch.SGD([parameter], lr=0.5)
    optimizer.step()
    assert torch.equal(parameter.detach(), torch.full((100_000,), 0.5))
    assert optimizer.ran == ["native flat float32"]
    transformation = isostep.jax.sgd(0.5)
    params = jax.numpy.ones(100_000)
    stepped, _ = transformation.apply(params, params, transformation.init(params))
    assert (np.asarray(stepped) == 0.5).all()
