"""What a step does to the process it runs in: `python -m tests.process_worker FRONT_END`.

Prints one JSON object: how many threads stepped under each setting, and what an import and a step
have changed. With `ONE_PROCESSOR` set the process may use one only.
"""

from __future__ import annotations

import ctypes
import gc
import json
import locale
import os
import random
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import isostep
from isostep.engines import openmp

if os.environ.get("ONE_PROCESSOR"):
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])

SHAPE = (512, 512)
Step = Callable[[], None]


def of_numpy() -> Any:
    def make() -> tuple[Step, Any]:
        params = {"w": np.ones(SHAPE, np.float32)}
        optimizer = isostep.AdamW(params)
        return lambda: optimizer.step({"w": np.ones(SHAPE, np.float32)}), optimizer.plan

    return make, None


def of_torch() -> Any:
    import torch

    def make() -> tuple[Step, Any]:
        import isostep.torch

        param = torch.nn.Parameter(torch.ones(SHAPE))
        param.grad = torch.ones(SHAPE)
        optimizer = isostep.torch.AdamW([param])
        return optimizer.step, optimizer.plan

    param = torch.nn.Parameter(torch.ones(SHAPE))
    (param @ param).sum().backward()
    torch.optim.AdamW([param]).step()  # torch's own first step changes environment and filters
    return make, torch.set_num_threads


def of_keras() -> Any:
    import keras
    import torch

    def make() -> tuple[Step, Any]:
        import isostep.keras

        variable = keras.Variable(np.ones(SHAPE, np.float32))
        optimizer = isostep.keras.AdamW()
        optimizer.build([variable])
        gradient = keras.ops.ones(SHAPE)
        return lambda: optimizer.apply([gradient]), optimizer.plan

    (torch.ones(SHAPE) @ torch.ones(SHAPE)).sum()
    return make, torch.set_num_threads


def of_paddle() -> Any:
    import paddle

    def make() -> tuple[Step, Any]:
        import isostep.paddle

        param = paddle.create_parameter(list(SHAPE), "float32")
        param.grad = paddle.ones(list(SHAPE))
        optimizer = isostep.paddle.AdamW(parameters=[param])
        return optimizer.step, optimizer.plan

    (paddle.ones(list(SHAPE)) @ paddle.ones(list(SHAPE))).sum()
    return make, paddle.base.core.set_num_threads


def of_jax() -> Any:
    import jax
    import jax.numpy as jnp

    def make() -> tuple[Step, Any]:
        import isostep.jax

        optimizer = isostep.jax.adamw(1e-3, engine="native")
        params = {"w": jnp.ones(SHAPE)}
        state, take = optimizer.init(params), jax.jit(optimizer.apply)
        return lambda: jax.block_until_ready(take(params, params, state)), None

    jax.block_until_ready(jnp.ones(SHAPE) @ jnp.ones(SHAPE))
    return make, None


FRONT_ENDS = {
    "numpy": of_numpy,
    "torch": of_torch,
    "keras": of_keras,
    "paddle": of_paddle,
    "jax": of_jax,
}


# -- threads ---------------------------------------------------------------------------------------


def threads_of(step: Step) -> list[int]:
    """How many threads each kernel of a step was launched on that was not called here."""
    found: list[int] = []
    run = openmp.Team.run

    def seen(*arguments: Any) -> None:
        found.append(arguments[4])
        run(*arguments)

    with mock.patch.object(openmp.Team, "run", seen):
        step()
    return found or [1]


def in_a_fork(step: Step) -> Any:
    """What `threads_of` says in a forked child, within a minute."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(60)
        try:
            os.write(write, json.dumps(threads_of(step)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return json.loads(said) if said else None


def threads(name: str, step: Step, plan: Any, set_own: Any) -> dict[str, Any]:
    """For each setting that can be changed in a process, the threads of a step."""
    step()  # what is compiled and found once
    found: dict[str, Any] = {"as it is": threads_of(step)}
    if plan is not None:
        found["told"] = plan().threads
    isostep.set_num_threads(3)
    found["isostep's"] = threads_of(step)
    isostep.set_num_threads(None)
    if set_own is not None:
        for count in (1, 3):
            set_own(count)
            found[f"its own, {count}"] = threads_of(step)
    if name not in ("jax", "paddle"):  # whose own threads do not outlive a fork
        found["forked"] = in_a_fork(step)
    return found


# -- the rest of the process -----------------------------------------------------------------------


def snapshot() -> dict[str, Any]:
    """What of a process is the user's, in a form that can be compared."""
    with warnings.catch_warnings():
        filters = list(warnings.filters)
    found: dict[str, Any] = {
        "environment": dict(os.environ),
        "warning filters": [repr(f) for f in filters],
        "signal handlers": [repr(signal.getsignal(n)) for n in signal.valid_signals()],
        "signal mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "wakeup": _wakeup(),
        "rounding": ctypes.CDLL(None).fegetround(),
        "denormals": _denormals(),
        "NumPy's errors": np.geterr(),
        "NumPy's random state": repr(np.random.get_state()),
        "Python's random state": hash(random.getstate()),
        "files": sorted(f"{n} {_target(n)}" for n in os.listdir("/proc/self/fd")),
        "folder": str(Path.cwd()),
        "stack size": threading.stack_size(),
        "Python threads": sorted(t.name for t in threading.enumerate()),
        "switch interval": sys.getswitchinterval(),
        "recursion": sys.getrecursionlimit(),
        "hooks": [repr(f) for f in (sys.excepthook, sys.displayhook, sys.unraisablehook)],
        "traces": [repr(sys.gettrace()), repr(sys.getprofile())],
        "search path": list(sys.path),
        "locale": locale.setlocale(locale.LC_ALL),
        "garbage collection": [gc.isenabled(), gc.get_threshold()],
        "affinity": sorted(os.sched_getaffinity(0)),
        "limits": [resource.getrlimit(n) for n in range(10)],
        "umask": _umask(),
        "OpenMP": {str(path): openmp.setting(path)() for path in openmp.mapped()},  # type: ignore[misc]
    }
    return json.loads(json.dumps(found | _of_torch(), default=repr))


def _wakeup() -> int:
    number = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(number)
    return number


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _target(number: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:  # that of the list itself
        return ""


def _denormals() -> float:
    small = np.full(64, 1e-310)
    return float((small * np.full(64, 0.5)).sum())


def _of_torch() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    return {
        "torch's threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "torch's random state": hash(bytes(torch.get_rng_state().tolist())),
        "torch's modes": [
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            str(torch.get_default_dtype()),
            str(torch.get_default_device()),
        ],
    }


def changed(make: Callable[[], tuple[Step, Any]]) -> tuple[list[str], Step, Any]:
    """What an import, and two steps, have changed; and the step."""
    before = snapshot()
    step, plan = make()
    for _ in range(2):
        step()
    after = snapshot()
    runtimes = before["OpenMP"] or after["OpenMP"]  # there may be one where there was none
    found = sorted(_differing({**before, "OpenMP": runtimes}, after))
    return found, step, plan


def _differing(before: Any, after: Any, where: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = before.keys() | after.keys()
        inner = [_differing(before.get(k), after.get(k), f"{where}/{k}") for k in keys]
        return [line for lines in inner for line in lines]
    return [] if before == after else [f"{where}: {before} -> {after}"]


def main(name: str) -> None:
    make, set_own = FRONT_ENDS[name]()
    snapshot()  # what looking itself brings in
    found, step, plan = changed(make)
    print(json.dumps({"changed": found, "threads": threads(name, step, plan, set_own)}))


if __name__ == "__main__":
    main(sys.argv[1])
