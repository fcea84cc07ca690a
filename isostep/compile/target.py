"""The processor and system that machine code is made for, and what they decide of a kernel's text.

Whatever is asked of them is asked here, of LLVM's own description of the target: where half
precision is converted by an instruction, and how a thread's flushing of denormal numbers is set.
Nothing in a kernel may need more than the processor: where LLVM has no instruction for an
operation it calls a function of a compiler's runtime, which is not there, and text in assembly
language needs a parser of it. So kernels have neither.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any

llvm: Any = importlib.import_module("llvmlite.binding")  # it has no types


@dataclass(frozen=True)
class Target:
    """A kind of machine.

    Args:
        triple: architecture and system, as LLVM names them.
        processor: LLVM's name of the processor.
        features: what it can do and what not, as LLVM writes it: `"+avx,-f16c"`. Empty: what
            processors of this name can.
    """

    triple: str
    processor: str
    features: str

    @property
    def architecture(self) -> str:
        """`"x86_64"`, `"aarch64"`, ...: one name for each, whatever the system calls it."""
        name = self.triple.partition("-")[0].lower()
        return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)

    @property
    def converts_half(self) -> bool:
        """Whether it has instructions that convert between half and single precision."""
        if self.architecture == "x86_64":
            return "+f16c" in self.features.split(",")
        return self.architecture == "aarch64"

    def machine(self) -> Any:
        """What makes its machine code."""
        target = llvm.Target.from_triple(self.triple)
        return target.create_target_machine(
            cpu=self.processor, features=self.features, opt=3, jit=True
        )


@functools.cache
def host() -> Target:
    """This machine."""
    return Target(llvm.get_process_triple(), llvm.get_host_cpu_name(), _features())


def _features() -> str:
    try:
        return llvm.get_host_cpu_features().flatten()
    except RuntimeError:  # LLVM cannot ask every system for them
        return ""


@functools.cache
def machine() -> Any:
    """What makes machine code for this machine."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return host().machine()


# -- denormal numbers ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mode:
    """Lines of LLVM's language around a call.

    Args:
        set: sets the flushing of denormal numbers by `%flushes`, which is 1 or 0.
        restore: sets the thread's mode back.
    """

    set: str = ""
    restore: str = ""


_X86 = Mode(  # MXCSR: flush-to-zero is bit 15, denormals-are-zero bit 6
    """
  %place = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %place)
  %before = load i32, ptr %place
  %others = and i32 %before, -32833
  %flag = trunc i64 %flushes to i32
  %bits = mul i32 %flag, 32832
  %mode = or i32 %others, %bits
  store i32 %mode, ptr %place
  call void @llvm.x86.sse.ldmxcsr(ptr %place)
""",
    """
  store i32 %before, ptr %place
  call void @llvm.x86.sse.ldmxcsr(ptr %place)
""",
)
_ARM = Mode(  # FPCR: flush-to-zero is bit 24
    """
  %before = call i64 @llvm.aarch64.get.fpcr()
  %others = and i64 %before, -16777217
  %bits = mul i64 %flushes, 16777216
  %mode = or i64 %others, %bits
  call void @llvm.aarch64.set.fpcr(i64 %mode)
""",
    """
  call void @llvm.aarch64.set.fpcr(i64 %before)
""",
)


def flushing_mode(target: Target) -> Mode:
    """How a thread's mode is set; on other architectures kernels run in the mode that it has."""
    return {"x86_64": _X86, "aarch64": _ARM}.get(target.architecture, Mode())
