"""Laws of what is taken from Numba: the code that `numba.njit` would compile, and no more work."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from isostep.compile import machine_code, optimised
from isostep.engines import headers

from .subprocesses import run
from .table import BY_NAME, parameters

NAME = re.compile(r'%[\w.\-]+|%"[^"]+"|^[\w.\-]+(?=:)', re.MULTILINE)
NUMBER = re.compile(r"#\d+|!\d+|; preds.*|isostep_apart[.\d]*")


def body(text: str, symbol: str) -> str:
    """A function's definition, with values and blocks named by the order in which they appear."""
    at = text.index(f"@{symbol}(ptr")
    start = text.rindex("define", 0, at)
    names: dict[str, str] = {}
    found = text[start : text.index("\n}\n", at)].replace(symbol, "function")

    def named(match: re.Match[str]) -> str:
        return names.setdefault(match[0].lstrip("%"), f"v{len(names)}")

    return NUMBER.sub("", NAME.sub(named, found))


@pytest.fixture(scope="module")
def kernels() -> list[str]:
    """Sources of every layout, in two dtypes; and one that looks at arrays."""
    sources: set[str] = set()
    for name, dtype in (("adafactor-torch", "float32"), ("everything", "float16")):
        params = parameters(dtype=dtype)
        optimizer = BY_NAME[name].optimizer(params, engine="native")
        for _ in range(2):
            optimizer.step({name: np.ones_like(p) for name, p in params.items()})
        sources |= {runner.source for runner in optimizer._stepper.last}
    return [*sorted(sources), headers._SOURCE]


def test_the_optimised_code_is_what_njit_has_before_it_makes_machine_code(
    kernels: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from numba.core import codegen

    theirs: dict[str, str] = {}
    finish: Any = codegen.CPUCodeLibrary._finalize_final_module

    def noted(library: Any) -> None:
        theirs[library.name] = str(library._final_module)
        finish(library)

    for source in kernels:
        written = machine_code.written(source).values()
        functions = {each: each.__code__.co_argcount for each in written}
        ours, symbols = optimised.by_target(functions)
        with monkeypatch.context() as patched:
            patched.setattr(codegen.CPUCodeLibrary, "_finalize_final_module", noted)
            _, their_symbols = optimised.by_njit(functions)
        for function, symbol, other in zip(functions, symbols, their_symbols, strict=True):
            name = function.__name__
            assert body(ours, symbol) == body(theirs[name], other), name


ASKED = """
import json, sys
import numpy as np
from isostep.compile import optimised
from tests.table import BY_NAME, gradients, parameters

made = {"by_target": 0, "by_njit": 0}

def counted(name):
    real = getattr(optimised, name)
    def asked(functions):
        made[name] += 1
        if name in BROKEN:
            raise AttributeError("Numba has changed")
        return real(functions)
    return asked

BROKEN = sys.argv[1:]
optimised.by_njit = counted("by_njit")
optimised.by_target = optimised._asked = counted("by_target")
params = parameters(dtype="float32")
optimizer = BY_NAME["adafactor-torch"].optimizer(params, engine="native")
for k in range(3):
    optimizer.step(gradients(k, dtype="float32"))
found = [p.tobytes().hex() for p in params.values()]
loaded = [name for name in ("numba.np.arraymath", "scipy.linalg") if name in sys.modules]
print(json.dumps([made, found, loaded]))
"""


def test_a_numba_that_has_changed_compiles_the_same_numbers(tmp_path: Any) -> None:
    """And only what kernels need of it is loaded, where it has not."""
    alone = {"OMP_NUM_THREADS": "1"}  # no other process compiles, and is not counted
    ours, numbers, loaded = run(ASKED, ISOSTEP_CACHE_DIR=str(tmp_path / "ours"), **alone)
    assert ours["by_target"] > 0
    assert ours["by_njit"] == 0
    assert loaded == []
    broken = ASKED.replace("sys.argv[1:]", '["by_target"]')
    theirs, same, _ = run(broken, ISOSTEP_CACHE_DIR=str(tmp_path / "theirs"), **alone)
    assert theirs == {"by_target": 1, "by_njit": ours["by_target"]}
    assert same == numbers
