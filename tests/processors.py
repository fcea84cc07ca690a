"""Older processors than this one, for kernels that are compiled and run as on those.

`python -m pytest -p tests.processors` runs tests as on the one that `$ISOSTEP_PROCESSOR` names.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import llvmlite.binding as llvm
from llvmlite.binding.targets import FeatureMap

_AVX = ("sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "cx16", "avx")


@dataclass(frozen=True)
class Processor:
    """What a processor of the x86 family can do beyond the first of them.

    Args:
        name: LLVM's name.
        features: LLVM's names of what kernels may use.
    """

    name: str
    features: tuple[str, ...]

    @property
    def is_here(self) -> bool:
        """Whether this machine can run what is compiled for it."""
        found = llvm.get_host_cpu_features()
        return found.get("sse2", False) and all(found.get(each) for each in self.features)


PROCESSORS = {
    each.name: each
    for each in (
        Processor("x86-64", ()),  # no vectors beyond SSE2
        Processor("sandybridge", _AVX),  # AVX, but no conversions of half precision
        Processor("ivybridge", (*_AVX, "f16c")),  # no fused multiply-add
    )
}


def become(processor: Processor) -> None:
    """Have LLVM, and with it Numba and isostep, take this machine for one with that processor."""
    base = ("64bit", "sse", "sse2", "cmov", "cx8", "fxsr", "mmx")
    real = llvm.get_host_cpu_features()
    features = FeatureMap()
    features.update({n: on and n in (*base, *processor.features) for n, on in real.items()})
    llvm.get_host_cpu_name = lambda: processor.name
    llvm.get_host_cpu_features = lambda: features


if "ISOSTEP_PROCESSOR" in os.environ:
    become(PROCESSORS[os.environ["ISOSTEP_PROCESSOR"]])
