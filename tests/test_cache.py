"""Laws of the kernel cache: safe to share, safe to lose, quick to load."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isostep.compile import cache, machine_code, numba_settings, room, target

from .hostile_caches import (
    ATTACKS,
    FAULTS,
    IS_ROOT,
    QUIET,
    Setup,
    as_somebody,
    chosen,
    homeless,
    poison,
    private_name,
)
from .subprocesses import results, run, start

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
KERNELS = 3
"""One steps, the others look at the headers of arrays and at dicts."""
COLD = {"right": True, "compiled": KERNELS, "numba": True, "ran": ["native flat float64"]}
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
    assert len(entries(filled)) == len(kernels) + len(sources) == 2 * KERNELS
    assert [k.stem for k in kernels] == [s.stem for s in sources]
    texts = [source.read_text() for source in sources]
    assert sum("def pass_0(low, high, context):" in text for text in texts) == 1


def test_several_processes_may_fill_one_directory_at_once(tmp_path: Path) -> None:
    directory = tmp_path / "not" / "made" / "yet"
    processes = [start(STEP, ISOSTEP_CACHE_DIR=str(directory)) for _ in range(3)]
    assert all(found["right"] for found in results(processes))
    assert [Path(name).suffix for name in entries(directory)] == [".kernel", ".py"] * KERNELS
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


# -- what nobody may trust, and what fails ---------------------------------------------------------


@pytest.fixture
def place(filled: Path) -> Iterator[Path]:
    """A directory that anybody can reach and only the user can write."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def step_in(setup: Setup) -> tuple[dict[str, Any], str]:
    """What a step says in a process that finds a cache so, and what it warns of."""
    process = start(setup.before + STEP, warnings="default", **setup.environment)
    try:
        out, err = process.communicate(timeout=300)
    finally:
        for other in setup.meanwhile:
            other.kill()
            other.communicate()
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1]), err


def poisoned(filled: Path, place: Path) -> Path:
    (place / "parent").mkdir(0o755)
    directory = copy(filled, place / "parent" / "cache")
    poison(directory)
    for path in [directory, *directory.iterdir()]:
        path.chmod(path.stat().st_mode & 0o755)
    return directory


def test_poisoned_entries_run_where_they_are_trusted(filled: Path, place: Path) -> None:
    """Else the attacks below would show nothing."""
    found, _ = step_in(chosen(poisoned(filled, place)))
    assert found == WARM | {"right": False}


@pytest.mark.skipif(os.name != "posix", reason="owners and modes are those of POSIX")
@pytest.mark.parametrize("name", ATTACKS)
def test_no_code_is_loaded_that_others_could_have_written(
    name: str, filled: Path, place: Path
) -> None:
    setup = ATTACKS[name](poisoned(filled, place))
    setup.environment = {"TMPDIR": str(place)} | setup.environment
    found, warned = step_in(setup)
    assert found["right"]
    assert found["ran"] == COLD["ran"]
    assert found["compiled"] >= 1
    assert warned.count("isostep does not load compiled kernels from") == (name not in QUIET)


@pytest.mark.parametrize("name", FAULTS)
def test_no_fault_of_a_cache_stops_a_step(name: str, place: Path) -> None:
    setup = FAULTS[name](place / "cache")
    setup.environment = {"TMPDIR": str(place)} | setup.environment
    found, warned = step_in(setup)
    assert {**found, "compiled": COLD["compiled"], "numba": True} == COLD
    assert "Error" not in warned
    assert "isostep does not load" not in warned


@pytest.mark.parametrize("warnings", ["error", "ignore", "always"])
def test_the_warning_says_the_way_out_and_stops_no_step(
    warnings: str, filled: Path, tmp_path: Path
) -> None:
    directory = copy(filled, tmp_path / "cache")
    directory.chmod(0o777)
    process = start(STEP, warnings=warnings, ISOSTEP_CACHE_DIR=str(directory), TMPDIR=str(tmp_path))
    with process:
        out, err = process.communicate(timeout=300)
    assert json.loads(out) == COLD
    assert err.count(str(directory)) == err.count("chmod go-w") == (warnings != "ignore")
    # It goes on in a directory of the user's own.
    private = tmp_path / private_name()
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert len(entries(private)) == 2 * KERNELS
    # And the way out is one.
    directory.chmod(0o755)
    assert run(STEP, ISOSTEP_CACHE_DIR=str(directory)) == WARM


# -- caches that are shared ------------------------------------------------------------------------


@pytest.mark.parametrize(("umask", "rights"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o644)])
def test_entries_are_readable_as_the_umask_says_and_never_others_to_write(
    umask: int, rights: int, tmp_path: Path
) -> None:
    directory = tmp_path / "a" / "b"
    before = f"import os\nos.umask({umask})\n"
    assert run(before + STEP, ISOSTEP_CACHE_DIR=str(directory)) == COLD
    found = {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert found == {rights}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755 & ~umask
    assert run(before + STEP, ISOSTEP_CACHE_DIR=str(directory)) == WARM


@pytest.mark.skipif(not IS_ROOT, reason="only root becomes another user")
@pytest.mark.parametrize("variable", ["ISOSTEP_CACHE_DIR", "ISOSTEP_CACHE_PATH"])
def test_what_root_has_compiled_is_read_by_all(variable: str, filled: Path, place: Path) -> None:
    """As in the image of a container."""
    setup = as_somebody(Setup(homeless(place / "cache")))
    setup.environment[variable] = str(copy(filled, place / "kernels"))
    before = entries(place / "kernels")
    found, warned = step_in(setup)
    assert found | {"numba": False} == WARM
    assert warned == ""
    assert entries(place / "kernels") == before


def test_directories_to_read_are_looked_at_in_turn(filled: Path, tmp_path: Path) -> None:
    one, other, own = (tmp_path / name for name in ("one", "other", "own"))
    for part, directory in enumerate((one, other)):
        copy(filled, directory)
        for path in sorted(directory.iterdir())[2 * part :][:2]:
            path.unlink()
    path = os.pathsep.join(map(str, ["", tmp_path / "nowhere", one, other]))
    assert run(STEP, ISOSTEP_CACHE_DIR=str(own), ISOSTEP_CACHE_PATH=path) == WARM
    assert not own.exists()


def test_one_of_twenty_processes_compiles(tmp_path: Path) -> None:
    found = results([start(STEP, ISOSTEP_CACHE_DIR=str(tmp_path / "cache")) for _ in range(20)])
    assert all(each["right"] and each["ran"] == COLD["ran"] for each in found)
    assert sum(each["compiled"] for each in found) == COLD["compiled"]
    assert len(entries(tmp_path / "cache")) == 2 * KERNELS


# -- how large it grows ----------------------------------------------------------------------------


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Entries of 1000 bytes and more, the first not used for longest."""
    monkeypatch.setenv("ISOSTEP_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cache, "_used", set())
    made = [cache.key(str(number)) for number in range(8)]
    for number, name in enumerate(made):
        assert cache.save(name, bytes(900), "")
        for path in tmp_path.glob(f"{name}.*"):
            os.utime(path, times=(number, number))
    cache._used.clear()
    (tmp_path / "mine.py").write_text("x" * 10_000)
    return made


def kept(names: list[str], directory: Path) -> list[int]:
    return [k for k, name in enumerate(names) if (directory / f"{name}.kernel").exists()]


def test_what_was_not_used_for_longest_is_deleted(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOSTEP_CACHE_SIZE", "6K")
    assert cache.load(names[0]) is not None  # used just now
    cache._used.clear()
    cache.save(cache.key("new"), bytes(900), "")
    assert kept(names, tmp_path) == [0, 5, 6, 7]
    assert (tmp_path / "mine.py").exists()
    assert sum(p.stat().st_size for p in tmp_path.iterdir() if p.name != "mine.py") <= 6 << 10


def test_what_a_process_uses_is_not_deleted(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOSTEP_CACHE_SIZE", "2K")
    assert cache.load(names[1]) is not None
    os.utime(tmp_path / f"{names[1]}.kernel", times=(0, 0))
    cache.save(cache.key("new"), bytes(900), "")
    assert kept(names, tmp_path) == [1]


def test_what_killed_writers_left_is_deleted_after_a_while(
    names: list[str], tmp_path: Path
) -> None:
    old, new = (tmp_path / f".{names[0]}.kernel.{digit * 12}" for digit in "01")
    for path in (old, new):
        path.touch()
    os.utime(old, times=(0, 0))
    cache.save(cache.key("new"), b"", "")
    assert not old.exists()
    assert new.exists()


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ("", 256 << 20),
        ("1000", 1000),
        ("2K", 2048),
        ("3 MiB", 3 << 20),
        ("1g", 1 << 30),
        ("much", 256 << 20),
        ("-1", 256 << 20),
        ("0", 0),
    ],
)
def test_the_size_is_chosen_by_the_environment(
    given: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOSTEP_CACHE_SIZE", given)
    assert room.limit() == size


# -- what an entry depends on ----------------------------------------------------------------------


def environment_with(monkeypatch: pytest.MonkeyPatch, change: str) -> str:
    """What a key depends on besides the source, on another machine or with another version."""
    if change in ("numba", "llvmlite"):
        real = machine_code._version_file
        monkeypatch.setattr(
            machine_code, "_version_file", lambda p: "99.0" if p == change else real(p)
        )
    else:
        other = replace(target.host(), **MACHINES[change])
        monkeypatch.setattr(target, "host", lambda: other)
    return machine_code._environment.__wrapped__()


MACHINES = {
    "cpu": {"processor": "i486"},
    "features": {"features": "-avx512f"},
    "machine": {"triple": "riscv64-unknown-linux-gnu"},
}


@pytest.mark.parametrize("change", ["numba", "llvmlite", "cpu", "features", "machine"])
def test_another_version_or_processor_gives_another_key(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine_code._environment.__wrapped__()
    assert machine_code._environment.__wrapped__() == here
    there = environment_with(monkeypatch, change)
    assert cache.key("source", here) != cache.key("source", there)


SETTINGS = {
    "NUMBA_OPT": "0",
    "NUMBA_LOOP_VECTORIZE": "0",
    "NUMBA_SLP_VECTORIZE": "1",
    "NUMBA_CPU_NAME": "generic",
    "NUMBA_CPU_FEATURES": "+sse2",
    "NUMBA_ENABLE_AVX": "0",
    "NUMBA_BOUNDSCHECK": "1",
    "NUMBA_DEBUGINFO": "1",
    "NUMBA_OF_A_LATER_VERSION": "1",
}


@pytest.mark.parametrize("variable", SETTINGS)
def test_a_setting_of_numba_that_changes_code_gives_another_key(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = numba_settings.text()
    monkeypatch.setenv(variable, SETTINGS[variable])
    assert numba_settings.text() != here


@pytest.mark.parametrize("variable", ["NUMBA_NUM_THREADS", "NUMBA_CACHE_DIR", "NUMBA_DUMP_IR"])
def test_other_settings_of_numba_do_not(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = numba_settings._of_environment()
    monkeypatch.setenv(variable, "1")
    assert numba_settings._of_environment() == here


@pytest.mark.parametrize("name", ["NUMBA_OPT", "NUMBA_CPU_NAME"])
def test_what_is_compiled_under_a_setting_is_found_under_it_alone(
    name: str, filled: Path, tmp_path: Path
) -> None:
    """Whether Numba, which then tells of its settings itself, is there already or not."""
    directory = copy(filled, tmp_path / "cache")
    slow = {"ISOSTEP_CACHE_DIR": str(directory), name: SETTINGS[name]}
    assert run(STEP, **slow) == COLD
    assert run(STEP, **slow) == WARM
    assert run("import numba" + STEP, **slow) == WARM | {"numba": True}
    assert run("import numba" + STEP, ISOSTEP_CACHE_DIR=str(directory)) == WARM | {"numba": True}
    assert run(STEP, ISOSTEP_CACHE_DIR=str(directory)) == WARM


def test_what_a_program_sets_in_numba_gives_another_key(filled: Path, tmp_path: Path) -> None:
    directory = str(copy(filled, tmp_path / "cache"))
    set_here = "import numba\nnumba.config.LOOP_VECTORIZE = 0\n"
    assert run(set_here + STEP, ISOSTEP_CACHE_DIR=directory) == COLD
    assert run(set_here + STEP, ISOSTEP_CACHE_DIR=directory) == WARM | {"numba": True}
    assert run(STEP, ISOSTEP_CACHE_DIR=directory) == WARM


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


def test_making_an_optimizer_and_its_plan_loads_neither_numba_nor_a_framework(
    filled: Path,
) -> None:
    made = IMPORT.replace(
        "import isostep\n",
        "import isostep, numpy\nisostep.AdamW([numpy.ones(3)], groups=[]).plan()\n"
        "isostep.dialects.difference('AdamW', 'torch', 'keras')\n",
    )
    assert (FOREIGN - {"llvmlite"}) & set(run(made, ISOSTEP_CACHE_DIR=str(filled))) == set()
