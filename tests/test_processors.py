"""Kernels are right on processors that have less, and need nothing that a process may not have."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest

from isostep.compile import machine_code, target
from isostep.compile.layout import ALIGNMENT
from isostep.compile.pass_writer import FLUSHING
from isostep.compile.target import Target
from isostep.engines import threads

from .processors import PROCESSORS
from .subprocesses import ROOT
from .table import BY_NAME, parameters

X86 = target.host().architecture == "x86_64"

# -- half precision, to the bit --------------------------------------------------------------------

CONVERT = """
from isostep.compile.intrinsics import *


def widen_all(low, high, context):
    words = int64_at(context)
    halves, singles = float16_at(words[0]), float32_at(words[1])
    for k in range(low, high):
        singles[k] = from_float16(halves[k])


def narrow_all(low, high, context):
    words = int64_at(context)
    halves, singles = float16_at(words[0]), float32_at(words[1])
    for k in range(low, high):
        halves[k] = to_float16(singles[k])
"""
HALVES = np.arange(1 << 16, dtype=np.uint16)


def convert(name: str, halves: Any, singles: Any, flushes: bool) -> None:
    words = np.array([halves.ctypes.data, singles.ctypes.data, flushes], np.int64)
    bounds = np.array([[0, len(halves)]], np.int64)
    address = machine_code.build(CONVERT, 2).addresses[name]
    threads.serially(address, bounds, words.ctypes.data)


def near_halves() -> Any:
    """Every number of half precision, every number between two, and the neighbours of both."""
    sizes = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    above = np.append(sizes[1:], np.float32(65536))
    points = np.concatenate([sizes, (sizes + above) / 2])
    points = np.concatenate([points, np.nextafter(points, -np.inf), np.nextafter(points, np.inf)])
    points = np.concatenate([points, -points]).astype(np.float32)
    random = np.random.default_rng(0).integers(0, 1 << 32, 1 << 20, dtype=np.uint32)
    special = np.array(
        [0, 1, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC01FFF, 0x7FFFFFFF],
        np.uint32,
    )
    special = np.concatenate([special, special | 0x80000000])
    return np.concatenate([points.view(np.uint32), random, special]).view(np.float32)


@pytest.mark.parametrize("flushes", [False, True])
def test_half_precision_is_widened_to_the_bit(flushes: bool) -> None:
    """A signalling NaN becomes a quiet one, as in IEEE 754."""
    found = np.zeros(len(HALVES), np.float32)
    convert("widen_all", HALVES, found, flushes)
    nan = (HALVES & 0x7FFF) > 0x7C00
    expected = np.where(nan, HALVES | 0x0200, HALVES).view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("flushes", [False, True])
@pytest.mark.filterwarnings("ignore:.*encountered in cast")
def test_half_precision_is_rounded_to_the_bit(flushes: bool) -> None:
    singles = near_halves()
    found = np.zeros(len(singles), np.uint16)
    convert("narrow_all", found, singles, flushes)
    bits = singles.view(np.uint32)
    nan = np.isnan(singles)
    kept = (bits >> 16 & 0x8000 | 0x7E00 | bits >> 13 & 0x03FF).astype(np.uint16)
    expected = np.where(nan, kept, singles.astype(np.float16).view(np.uint16))
    np.testing.assert_array_equal(found, expected)


# -- as on older processors ------------------------------------------------------------------------

CASES = (
    "half_precision or what_kernels_are_compiled_for or "
    "(native and (adamw or adafactor-torch or everything) and (low_precision or float32_is))"
)


@pytest.mark.skipif(not X86, reason="these are of the x86 family")
@pytest.mark.parametrize("name", PROCESSORS)
def test_kernels_compiled_for_an_older_processor_are_as_right(name: str) -> None:
    """With the conversions above, and rounding within bounds that no fused operation is needed
    for."""
    if not PROCESSORS[name].is_here:
        pytest.skip("this machine cannot run what is compiled for it")
    plugins = ["-p", "tests.processors", "-p", "no:xdist", "-p", "no:cacheprovider"]
    files = ["tests/test_processors.py", "tests/test_against_oracle.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, *files, "-k", CASES],
        env=os.environ | {"ISOSTEP_PROCESSOR": name},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 15  # type: ignore[index]


def test_an_older_processor_is_what_kernels_are_compiled_for() -> None:
    """And this test is among those that run as on it."""
    asked = os.environ.get("ISOSTEP_PROCESSOR")
    if asked is not None:
        assert target.host().processor == asked
        assert target.host().converts_half == ("f16c" in PROCESSORS[asked].features)


# -- as for other machines -------------------------------------------------------------------------

TARGETS = [
    Target("x86_64-unknown-linux-gnu", "x86-64", ""),
    Target("x86_64-unknown-linux-gnu", "znver4", "+f16c"),
    Target("x86_64-apple-macosx", "nehalem", ""),
    Target("x86_64-pc-windows-msvc", "x86-64", ""),
    Target("x86_64-pc-windows-msvc", "haswell", "+f16c,+avx2"),
    Target("aarch64-unknown-linux-gnu", "generic", ""),
    Target("aarch64-unknown-linux-gnu", "neoverse-v1", ""),
    Target("arm64-apple-macosx", "apple-m1", ""),
    Target("aarch64-pc-windows-msvc", "generic", ""),
]
# Of the C library, which every process has; and what Windows' has for frames of several pages.
PRESENT = re.compile(r"_?(memset|memcpy|memmove|bzero)$|_?_?chkstk$")
CALL = re.compile(r"^\s*(?:callq?|bl|b|jmp)\s+([A-Za-z_][\w$.@]*)", re.MULTILINE)
LABEL = re.compile(r"^\"?([A-Za-z_.$][\w$.@]*)\"?:", re.MULTILINE)


@functools.cache
def sources() -> list[str]:
    """A kernel of each layout."""
    found: list[str] = []
    for name in ("adafactor-torch", "everything"):
        params = parameters(dtype="float16")
        optimizer = BY_NAME[name].optimizer(params, engine="native")
        optimizer.step({name: np.ones_like(p) for name, p in params.items()})
        found += [runner.source for runner in optimizer._stepper.last]
    return found


@functools.cache
def texts(architecture: str, converts_half: bool) -> list[str]:
    """The kernels in LLVM's language, for the target that `target.host` tells of. What differs
    between targets is what they are asked."""
    assert target.host().architecture == architecture
    assert target.host().converts_half == converts_half
    found: list[str] = []
    for source in sources():
        functions = re.findall(r"^def (\w+)\((.*)\):", source, re.MULTILINE)
        words = {name: len(given.split(",")) for name, given in functions}
        module = machine_code._module(source, {f: f"entry_{f}" for f in words}, words, FLUSHING)
        found.append(str(module))
    return found


@pytest.fixture(scope="module")
def all_targets() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


@pytest.mark.parametrize("machine", TARGETS, ids=lambda t: f"{t.triple}-{t.processor}")
def test_a_kernel_for_any_machine_calls_nothing_that_is_not_there(
    machine: Target, all_targets: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No function of a compiler's runtime, and no assembly language, which needs a parser."""
    sources()
    monkeypatch.setattr(target, "host", lambda: machine)
    kernels = texts(machine.architecture, machine.converts_half)
    assert len(kernels) == 4  # flat, rows and lanes; and flat
    kind = llvm.Target.from_triple(machine.triple)
    # Not as for this process, where calls go by addresses in registers.
    emitter = kind.create_target_machine(
        cpu=machine.processor, features=machine.features, opt=3, codemodel="small"
    )
    for kernel in kernels:
        assert not re.search(r"\basm\b", kernel)
        module = llvm.parse_assembly(kernel)
        module.triple, module.data_layout = machine.triple, str(emitter.target_data)
        text = emitter.emit_assembly(module)
        called = {name.partition("@")[0] for name in CALL.findall(text)}
        assert called, "a kernel's entry point calls it"
        missing = called - set(LABEL.findall(text))
        assert not {name for name in missing if not PRESENT.match(name)}


def test_architectures_go_by_one_name_whatever_systems_call_them() -> None:
    found = [Target(f"{name}-x-y", "", "").architecture for name in ("AMD64", "arm64", "riscv64")]
    assert found == ["x86_64", "aarch64", "riscv64"]


def test_a_system_that_tells_no_features_has_those_that_the_processor_is_known_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise RuntimeError("failed to get host cpu features.")

    monkeypatch.setattr(target.llvm, "get_host_cpu_features", refuse)
    assert target.host.__wrapped__().features == ""


def test_memory_of_two_threads_is_a_line_of_any_cache_apart() -> None:
    assert ALIGNMENT >= 128  # Apple's; others' are of 64
