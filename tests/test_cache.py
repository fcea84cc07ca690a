"""Laws of the kernel cache: safe to share, safe to lose, quick to load."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from isostep.compile import cache, machine_code

from .subprocesses import result, run, start

STEP = """
import json, sys
import numpy as np
import isostep
from isostep.compile import machine_code
p = {"p": np.linspace(-1, 1, 100)}
optimizer = isostep.SGD(p, lr=0.5, momentum=0.5)
optimizer.step({"p": np.linspace(1, 2, 100)})
print(json.dumps({
    "right": bool(np.array_equal(p["p"], np.linspace(-1, 1, 100) - 0.5 * np.linspace(1, 2, 100))),
    "compiled": machine_code.compilations,
    "numba": "numba" in sys.modules,
    "ran": optimizer.ran,
}))
"""
# One kernel steps, another looks at the headers of arrays.
COLD = {"right": True, "compiled": 2, "numba": True, "ran": ["native flat float64"]}
WARM = COLD | {"compiled": 0, "numba": False}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the entries of `STEP`."""
    directory = tmp_path_factory.mktemp("cache")
    assert run(STEP, ISOSTEP_CACHE_DIR=str(directory)) == COLD
    return directory


def entries(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for name, content in entries(source).items():
        (target / name).write_bytes(content)
    return target


def test_a_warm_start_compiles_nothing_and_imports_no_numba(filled: Path) -> None:
    before = entries(filled)
    assert run(STEP, ISOSTEP_CACHE_DIR=str(filled)) == WARM
    assert entries(filled) == before


def test_an_entry_is_one_kernel_and_its_readable_source(filled: Path) -> None:
    kernels, sources = sorted(filled.glob("*.kernel")), sorted(filled.glob("*.py"))
    assert len(entries(filled)) == len(kernels) + len(sources) == 4
    assert [k.stem for k in kernels] == [s.stem for s in sources]
    texts = [source.read_text() for source in sources]
    assert sum("def pass_0(low, high, context):" in text for text in texts) == 1


def test_several_processes_may_fill_one_directory_at_once(tmp_path: Path) -> None:
    directory = tmp_path / "not" / "made" / "yet"
    processes = [start(STEP, ISOSTEP_CACHE_DIR=str(directory)) for _ in range(3)]
    assert all(result(process)["right"] for process in processes)
    assert [Path(name).suffix for name in entries(directory)] == [".kernel", ".py"] * 2
    assert run(STEP, ISOSTEP_CACHE_DIR=str(directory)) == WARM


def test_a_directory_that_cannot_be_written_only_costs_the_compilation(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert run(STEP, ISOSTEP_CACHE_DIR=str(tmp_path / "file" / "cache")) == COLD


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any directory")
def test_a_read_only_directory_serves_what_it_has(filled: Path, tmp_path: Path) -> None:
    directory = copy(filled, tmp_path / "cache")
    directory.chmod(0o500)
    assert run(STEP, ISOSTEP_CACHE_DIR=str(directory)) == WARM


def cut_short(content: bytes) -> bytes:
    return content[: len(content) // 2]


def one_bit_flipped(content: bytes) -> bytes:
    place = len(content) * 3 // 4
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


def emptied(content: bytes) -> bytes:
    return b""


def something_else(content: bytes) -> bytes:
    return b"no kernel at all" * 10


@pytest.mark.parametrize("damage", [cut_short, one_bit_flipped, emptied, something_else])
def test_a_damaged_entry_is_found_out(
    damage: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOSTEP_CACHE_DIR", str(tmp_path))
    content = bytes(range(256)) * 20
    cache.save("name", content, "source")
    assert cache.load("name") == content
    file = tmp_path / "name.kernel"
    file.write_bytes(damage(file.read_bytes()))
    assert cache.load("name") is None


def test_a_damaged_entry_is_compiled_anew_and_replaced(filled: Path, tmp_path: Path) -> None:
    directory = copy(filled, tmp_path / "cache")
    for kernel in directory.glob("*.kernel"):
        kernel.write_bytes(one_bit_flipped(kernel.read_bytes()))
    assert run(STEP, ISOSTEP_CACHE_DIR=str(directory)) == COLD
    assert run(STEP, ISOSTEP_CACHE_DIR=str(directory)) == WARM


def test_an_entry_under_a_directorys_name_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOSTEP_CACHE_DIR", str(tmp_path))
    (tmp_path / "name.kernel").mkdir()
    assert cache.load("name") is None
    cache.save("name", b"content", "source")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []  # nothing left over


def environment_with(monkeypatch: pytest.MonkeyPatch, change: str) -> str:
    """What a key depends on besides the source, on another machine or with another version."""
    if change in ("numba", "llvmlite"):
        real = machine_code._version_file
        monkeypatch.setattr(
            machine_code, "_version_file", lambda p: "99.0" if p == change else real(p)
        )
    elif change == "cpu":
        monkeypatch.setattr(machine_code.llvm, "get_host_cpu_name", lambda: "i486")
    elif change == "features":
        monkeypatch.setattr(machine_code.llvm, "get_host_cpu_features", dict_without_avx)
    elif change == "machine":
        monkeypatch.setattr(machine_code.platform, "machine", lambda: "riscv64")
    return machine_code._environment.__wrapped__()


def dict_without_avx() -> object:
    class Features:
        def flatten(self) -> str:
            return "-avx512f"

    return Features()


@pytest.mark.parametrize("change", ["numba", "llvmlite", "cpu", "features", "machine"])
def test_another_version_or_processor_gives_another_key(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine_code._environment.__wrapped__()
    assert machine_code._environment.__wrapped__() == here
    there = environment_with(monkeypatch, change)
    assert cache.key("source", here) != cache.key("source", there)


def test_another_source_gives_another_key() -> None:
    keys = [cache.key("a", "b"), cache.key("a", "c"), cache.key("ab", ""), cache.key("", "ab")]
    assert len(set(keys)) == len(keys)


def test_the_directory_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOSTEP_CACHE_DIR", "/a")
    assert cache.directory() == Path("/a")
    monkeypatch.delenv("ISOSTEP_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache.directory() == Path("/b/isostep")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.directory() == Path.home() / ".cache" / "isostep"


IMPORT = """
import json, sys
import isostep
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
FOREIGN = {
    "numba",
    "llvmlite",
    "torch",
    "keras",
    "tf_keras",
    "tensorflow",
    "paddle",
    "jax",
    "optax",
}


def test_importing_isostep_loads_neither_numba_nor_a_framework() -> None:
    assert FOREIGN & set(run(IMPORT)) == set()


def test_making_an_optimizer_and_its_plan_loads_neither_numba_nor_a_framework() -> None:
    made = IMPORT.replace(
        "import isostep\n",
        "import isostep, numpy\nisostep.AdamW([numpy.ones(3)], groups=[]).plan()\n"
        "isostep.dialects.difference('AdamW', 'torch', 'keras')\n",
    )
    assert (FOREIGN - {"llvmlite"}) & set(run(made)) == set()
