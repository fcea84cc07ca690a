"""From Python functions to one optimised LLVM module, by Numba's compiler.

`numba.njit` would do more than is asked: it makes machine code of each function, which would be
made again for the cache; it links its runtime for memory and exceptions, which no kernel has; and
at its first call it loads what it knows of arrays, lists, dicts and SciPy. The target below knows
integers, floating-point numbers, `range` and the intrinsics, and ends at the optimised module.

Its parts are not what Numba promises to keep. Where one of them is missing, `njit` itself is asked:
the kernels are the same, and take longer.
"""

# Numba's compiler is untyped, and so is what is written on it.
# pyright: basic

from __future__ import annotations

import functools
from types import FunctionType, SimpleNamespace
from typing import Any

import numba

_OPTIONS = {
    # A checked division would keep loops from the vector unit.
    "error_model": "numpy",
    "fastmath": {"contract"},
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
_WORD = numba.types.int64


def optimised(functions: dict[FunctionType, int]) -> tuple[str, list[str]]:
    """The functions in LLVM's language, optimised for this machine.

    Args:
        functions: each with how many arguments it takes, words all of them; none is returned.

    Returns:
        The text, and the symbol of each function. It is called with two pointers before the words.
    """
    global _asked
    if _asked is by_target:
        try:
            return by_target(functions)
        except Exception:  # Numba has changed; or a kernel is wrong, which shows again
            _asked = by_njit  # for good: older versions confuse the intrinsics of two targets
    return by_njit(functions)


def by_njit(functions: dict[FunctionType, int]) -> tuple[str, list[str]]:
    """As `optimised`, by what Numba promises to keep."""
    import llvmlite.binding as llvm

    texts, symbols = [], []
    for function, words in functions.items():
        dispatcher = numba.njit(numba.types.void(*[_WORD] * words), **_OPTIONS)(function)
        (signature,) = dispatcher.signatures
        texts.append(dispatcher.inspect_llvm(signature))
        symbols.append(dispatcher.overloads[signature].fndesc.llvm_func_name)
    module = llvm.parse_assembly(texts[0])
    for text in texts[1:]:
        module.link_in(llvm.parse_assembly(text))
    return str(module), symbols


def by_target(functions: dict[FunctionType, int]) -> tuple[str, list[str]]:
    """As `optimised`, by the target below."""
    from numba.core import compiler, cpu, target_extension
    from numba.core.compiler_lock import global_compiler_lock

    typing_context, target_context = _contexts()
    symbols = []
    # The lock is Numba's own: other threads may be compiling what is theirs.
    with global_compiler_lock, target_extension.target_override(_TARGET):
        library = target_context.codegen().create_library("isostep")
        for function, words in functions.items():
            flags: Any = compiler.Flags()
            cpu.CPUTargetOptions.parse_as_flags(flags, dict(_OPTIONS))
            flags.enable_pyobject = False
            flags.no_compile = True
            compiled = compiler.compile_extra(
                typing_context,
                target_context,
                function,
                args=(_WORD,) * words,
                return_type=numba.types.void,
                flags=flags,
                locals={},
                library=library,
            )
            symbols.append(compiled.fndesc.llvm_func_name)
        library.finalize()
    return library.get_llvm_str(), symbols


_asked = by_target
_TARGET = "isostep"


@functools.cache
def _contexts():
    """What knows types, and what writes LLVM code, of a target for isostep's kernels."""
    from numba.core import codegen, cpu, fastmathpass, target_extension
    from numba.core.typing.context import Context
    from numba.core.utils import MACHINE_BITS  # pyright: ignore[reportPrivateImportUsage]

    class Library(codegen.CPUCodeLibrary):
        """Ends with the optimised module."""

        def _finalize_specific(self):
            pass

    class Codegen(codegen.JITCPUCodegen):
        _library_class = Library

        def _add_module(self, module):
            pass

    class Typing(Context):
        def load_additional_registries(self):
            pass  # of NumPy, lists, sets, dicts, ...

    class Lowering(cpu.CPUContext):
        def init(self):
            self.is32bit = MACHINE_BITS == 32
            self._internal_codegen = Codegen(_TARGET)

        def load_additional_registries(self):
            # Each adds to Numba's builtins by being imported.
            from numba.core import optional  # noqa: F401
            from numba.cpython import (  # noqa: F401
                builtins,
                iterators,
                numbers,
                rangeobj,
                tupleobj,
            )

        def post_lowering(self, mod, library):
            if self.fastmath:
                fastmathpass.rewrite_module(mod, self.fastmath)

    class Target(target_extension.CPU):
        pass

    def jit(**options):
        """Numba has some builtins as functions, which would be compiled first."""
        raise NotImplementedError("kernels call no compiled functions: write an intrinsic")

    target_extension.target_registry[_TARGET] = Target
    typing_context = Typing()
    target_context = Lowering(typing_context, _TARGET)

    class Description:
        """Where an intrinsic finds the target that it is compiled for."""

        targetdescr = SimpleNamespace(typing_context=typing_context, target_context=target_context)

    target_extension.dispatcher_registry[Target] = Description
    target_extension.jit_registry[Target] = jit
    return typing_context, target_context
