"""Steps go on by array code while kernels are compiled, where that would be waited for too long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isostep.compile import behind

from .subprocesses import run

# An optimizer for which each layout has a kernel, stepped until all of them are there.
SOURCE = """
import json, logging, os, sys, threading, time
import numpy as np

told = []
handler = logging.Handler()
handler.emit = lambda record: told.append(record.getMessage())
logging.getLogger("isostep").addHandler(handler)
BEFORE
SHAPES = {"flat": (70,), "rows": (40, 30), "lanes": (9, 8, 3, 3)}
random = np.random.default_rng(5)
params = {k: random.normal(size=s).astype("float32") for k, s in SHAPES.items()}
grads = {k: random.normal(size=s).astype("float32") for k, s in SHAPES.items()}
MAKE
def step():
    optimizer.step(*given)
    return {entry.split()[0] for entry in optimizer.ran}

seen, end = [], time.monotonic() + 300
while len(seen) < 12 or (UNTIL not in seen[-1] and time.monotonic() < end):
    time.sleep(0.05 if len(seen) >= 12 else 0)
    seen.append(step())
AFTER
found = [sorted(entry) for entry in seen]
print(json.dumps([found, told, {k: p.tolist() for k, p in params.items()}]))
"""
MAKE = {
    "numpy": """
import isostep
optimizer = isostep.Adafactor(params, lr=0.1, dialect="torch", min_dim_to_factor=1)
given = [grads]
""",
    "torch": """
import torch, isostep.torch
leaves = [torch.nn.Parameter(torch.from_numpy(p)) for p in params.values()]
for leaf, g in zip(leaves, grads.values()):
    leaf.grad = torch.from_numpy(g)
optimizer, given = isostep.torch.Adafactor(leaves, lr=0.1), []
""",
}


def stepped(front_end: str, cache: Path, wait: str, **parts: str) -> Any:
    """What took each of some steps, what was said, and the parameters after twelve steps."""
    source = SOURCE.replace("MAKE", MAKE[front_end])
    for part, default in (("BEFORE", ""), ("AFTER", ""), ("UNTIL", '"native"')):
        source = source.replace(part, parts.get(part, default))
    return run(source, ISOSTEP_CACHE_DIR=str(cache), ISOSTEP_COMPILE_WAIT=wait)


@pytest.mark.parametrize("front_end", MAKE)
def test_array_code_takes_steps_until_kernels_are_there(front_end: str, tmp_path: Path) -> None:
    seen, told, _ = stepped(front_end, tmp_path / "cold", "0")
    assert seen[0] == ["array"]
    assert "native" in seen[-1]
    assert len(told) == 1
    assert "ISOSTEP_COMPILE_WAIT=inf" in told[0]
    waited, said, _ = stepped(front_end, tmp_path / "warm", "inf")
    assert waited == [["native"]] * len(waited)
    assert not [line for line in said if "array code" in line]


@pytest.mark.parametrize("front_end", MAKE)
def test_the_numbers_are_those_of_kernels_within_rounding(front_end: str, tmp_path: Path) -> None:
    hangs = """
from isostep.compile import side_by_side
side_by_side._START = "import time; time.sleep(600)"
"""
    seen, _, by_arrays = stepped(front_end, tmp_path / "a", "0", BEFORE=hangs, UNTIL='"array"')
    assert seen == [["array"]] * 12
    seen, _, by_kernels = stepped(front_end, tmp_path / "b", "inf")
    assert seen == [["native"]] * 12
    for name, right in by_kernels.items():
        # Twelve steps of float32, each a few roundings of what is moved.
        np.testing.assert_allclose(by_arrays[name], right, rtol=2e-5, atol=2e-6)


def test_what_nobody_compiles_is_compiled_here(tmp_path: Path) -> None:
    dies = """
from isostep.compile import side_by_side
side_by_side._START = "raise SystemExit(3)"
"""
    seen, _, _ = stepped("numpy", tmp_path, "0", BEFORE=dies)
    assert "native" in seen[-1]


@pytest.mark.parametrize("given", ["soon", "-1", "nan"])
def test_a_wait_that_is_no_number_of_seconds_is_refused(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(behind.VARIABLE, given)
    with pytest.raises(ValueError, match=f"ISOSTEP_COMPILE_WAIT='{given}' is not a number"):
        behind.patience()
