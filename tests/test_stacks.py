"""Laws of threads with small stacks: neither kernels nor the compiler need deep ones."""

from __future__ import annotations

import pytest

from .subprocesses import run

# One tensor for each way of walking; matrices of 64 elements are the largest of the lanes layout.
SOURCE = """
import hashlib, json, threading
import numpy as np
import isostep
from isostep.compile import machine_code
from isostep.engines.threads import HOST
from tests.table import BY_NAME

SHAPES = {"flat": (70_001,), "rows": (300, 300), "lanes": (640, 32, 8, 8)}
ran = set()

def digest(config, dtype):
    random = np.random.default_rng(3)
    params = {n: random.normal(size=s).astype(dtype) for n, s in SHAPES.items()}
    optimizer = BY_NAME[config].optimizer(params)
    for _ in range(2):
        optimizer.step({n: random.normal(size=s).astype(dtype) for n, s in SHAPES.items()})
    ran.update(name.split()[1] for name in optimizer.ran)
    found = hashlib.sha256()
    for name, p in params.items():
        for array in (p, *optimizer.slots(name).values()):
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()

CASES = [("everything", "float32"), ("everything-adafactor", "float64")]
found = {}

def work():
    for case in CASES:
        found[case] = digest(*case)

SMALL
compiled = machine_code.compilations
right = {case: digest(*case) for case in CASES}
print(json.dumps([found == right, compiled > 0, sorted(ran), HOST.count()]))
"""

IN_A_SMALL_THREAD = """
threading.stack_size(64 << 10)
thread = threading.Thread(target=work)
thread.start()
thread.join()
assert threading.stack_size() == 64 << 10
"""


@pytest.mark.parametrize("stack", ["16K", "128K"])
def test_the_threads_of_a_kernel_need_no_deep_stacks(stack: str) -> None:
    source = SOURCE.replace("SMALL", "work()")
    same, _, layouts, count = run(source, OMP_STACKSIZE=stack, OMP_NUM_THREADS="2")
    assert (same, layouts, count) == (True, ["flat", "lanes", "rows"], 2)


@pytest.mark.parametrize("cold", [True, False])
def test_a_thread_with_a_small_stack_may_compile_and_step(cold: bool, tmp_path: object) -> None:
    """Python itself, and NumPy, need little less than its 64 KiB."""
    environment = {"ISOSTEP_CACHE_DIR": str(tmp_path)} if cold else {}
    source = SOURCE.replace("SMALL", IN_A_SMALL_THREAD)
    same, compiled, layouts, _ = run(source, OMP_NUM_THREADS="1", **environment)
    assert (same, layouts) == (True, ["flat", "lanes", "rows"])
    assert compiled or not cold
