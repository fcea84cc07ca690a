"""From generated source to a callable address: Numba once, then the cache.

Numba turns source into LLVM code. Around each function goes an entry point with the signature that
Numba's thread pools call, which switches flush-to-zero on or off, as its caller says, and back. The
machine code is kept in `cache`, and loading it needs llvmlite only: a warm start imports no Numba.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import importlib.util
import linecache
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

from isostep import forks
from isostep.compile import behind, cache, numba_settings, target, waiting
from isostep.compile.target import llvm
from isostep.lock import Lock

_lock = Lock(inner=True)
_kernels: dict[tuple[str, int | None], Kernel] = {}
_engines: list[Any] = []  # owners of loaded code: it lives as long as the process
_DEEP = 16 << 20  # bytes of stack for the compiler, of which it uses what it needs
compilations = 0
"""How many kernels this process has compiled, as opposed to found in the cache."""


@dataclass(frozen=True)
class Kernel:
    """Loaded machine code of one generated module.

    Args:
        source: the generated source.
        addresses: the address of each function by name, with the signature
            `void(char **args, size_t *counts, size_t *steps, void *context)`, where `args[0]`
            points at what the function takes before `context`: the first and the end chunk, and
            what else there is.
        compiled: whether this process compiled it (else it came from the cache).
    """

    source: str
    addresses: dict[str, int]
    compiled: bool


def build(source: str, flushing: int | None = None) -> Kernel:
    """The machine code of a module, from memory, disk or compiler.

    Args:
        source: the module.
        flushing: place of the word in the context that says whether denormal numbers are flushed
            to zero while a function runs: 1 or 0. None: it runs in the mode of its thread.
    """
    known = source, flushing
    found = _kernels.get(known)
    if found is None:
        with _lock:
            found = _kernels.get(known)
            if found is None:
                _refuse_if_torn()
                wanted = _Wanted(source, flushing)
                found = _kernels[known] = _on_deep_stack(lambda: _build(wanted))
    return found


def prepare(modules: Iterable[tuple[str, int | None]], processes: int) -> None:
    """Compile what memory and cache lack of several modules, side by side, for `build` to find.

    Args:
        modules: arguments of `build`.
        processes: how many may work at once, this one among them.
    """
    with _lock:
        lacking = [_Wanted(*known) for known in dict.fromkeys(modules) if known not in _kernels]
        if lacking:
            _refuse_if_torn()
        lacking = [wanted for wanted in lacking if not _found(wanted)]
        lacking.sort(key=_seconds, reverse=True)  # the longest first: they end together
        if not lacking:
            return
        if _go_on_without(lacking, min(processes, len(lacking))):
            return
        helpers = min(processes, len(lacking), 1 + int(sum(map(_seconds, lacking)) / _WORTH)) - 1

        def work() -> None:
            if helpers:
                from isostep.compile import side_by_side  # imports much, for cold starts only

                side_by_side.share(lacking, helpers, here, _by_worker)
            for wanted in lacking:
                here(wanted)

        def here(wanted: _Wanted) -> None:
            known = wanted.source, wanted.flushing
            if known not in _kernels:
                _kernels[known] = _build(wanted)

        with waiting.compiling([wanted.title for wanted in lacking]):
            _on_deep_stack(work)


def is_behind(source: str, flushing: int | None) -> bool:
    """Whether other processes are still compiling a module: array code takes its steps until then.

    Args:
        source, flushing: as of `build`.
    """
    known = source, flushing
    return known not in _kernels and behind.going(known) and known not in _ready


def _go_on_without(lacking: list[_Wanted], processes: int) -> bool:
    """Leave modules to other processes, if they would be waited for too long."""
    foreseen = sum(map(_seconds, lacking)) * _slowness() / processes
    if foreseen <= behind.patience():
        return False
    from isostep.compile import side_by_side

    if side_by_side.interpreter() is None:
        return False

    def there(wanted: _Wanted, ask: Callable[[bytes], bytes | None], stop: threading.Event) -> None:
        _by_worker(wanted, ask, stop)
        _ready.add((wanted.source, wanted.flushing))

    def work() -> None:
        side_by_side.share(lacking, processes, None, there, _BEHIND)

    begun = behind.begin([(wanted.source, wanted.flushing) for wanted in lacking], work)
    if begun:
        waiting.go_on([wanted.title for wanted in lacking], foreseen)
    return begun


def _refuse_if_torn() -> None:
    """Neither compile nor load where a lock of llvmlite may be held for ever."""
    if forks.torn:
        raise RuntimeError(
            f"this process was forked while another thread had been importing isostep or compiling "
            f"for {forks.PATIENCE:.0f} s, and cannot compile kernels: start it by spawn, or fork "
            f"when the first step is done"
        )


def _on_deep_stack(work: Callable[[], Any]) -> Any:
    """What `work` returns. LLVM recurses deeper than the stacks of small threads are, so only the
    main thread does it itself."""
    if threading.current_thread() is threading.main_thread():
        return work()
    found: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="isostep compiler", daemon=True)
    before = threading.stack_size(_DEEP)
    try:
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


class _Wanted:
    """A module, and the name of its entry in the cache; arguments as of `build`."""

    def __init__(self, source: str, flushing: int | None) -> None:
        self.source, self.flushing = source, flushing
        self.name = cache.key(source, str(flushing), _environment(), numba_settings.text())
        tree = ast.parse(source)
        functions = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
        self.words = {f.name: len(f.args.args) for f in functions}
        self.entries = {function: f"isostep_{self.name}_{function}" for function in self.words}
        self.title = (ast.get_docstring(tree) or "").partition("\n")[0]


def _build(wanted: _Wanted) -> Kernel:
    global compilations
    source, name = wanted.source, wanted.name
    code = _made.pop(name, None)
    if code is not None:
        with contextlib.suppress(RuntimeError):
            kernel = Kernel(source, _addresses(code, wanted.entries), compiled=True)
            compilations += 1
            return kernel
    addresses = _kept(name, wanted.entries)
    if addresses is not None:
        return Kernel(source, addresses, compiled=False)
    with waiting.compiling([wanted.title]), cache.turn(name):
        addresses = _kept(name, wanted.entries)  # another process has compiled it meanwhile
        if addresses is not None:
            return Kernel(source, addresses, compiled=False)
        begun = time.monotonic()
        code = _compile(source, wanted.entries, wanted.words, wanted.flushing)
        if compilations:  # the first waits for Numba
            _took[0] += time.monotonic() - begun
            _took[1] += _seconds(wanted)
        compilations += 1
        cache.save(name, code, source)
    return Kernel(source, _addresses(code, wanted.entries), compiled=True)


# -- by other processes ----------------------------------------------------------------------------

_made: dict[str, bytes] = {}
"""Machine code that workers have made and nobody has loaded, by the name of its entry."""
_WORTH = 1.5
"""Seconds of work that a further process is started for: it takes half a second to import Numba."""
_LINES = 200
"""Lines of a pass that take about a second."""
_BEHIND = 600.0
"""Seconds that other processes have for what steps go on without."""
_ready: set[tuple[str, int | None]] = set()
"""The modules that they are done with."""
_took = [0.0, 0.0]
"""Seconds that compiling took here, and that it would have taken by `_LINES`."""


def _slowness() -> float:
    """How many times longer compiling takes than by `_LINES`, as far as that is known."""
    took, foreseen = _took
    return took / foreseen if foreseen else 1.0


def _seconds(wanted: _Wanted) -> float:
    """About how long a module takes to compile."""
    return wanted.source.count("\n") / _LINES


def _found(wanted: _Wanted) -> bool:
    """Whether the cache has it: then it is loaded."""
    addresses = _kept(wanted.name, wanted.entries)
    if addresses is not None:
        known = wanted.source, wanted.flushing
        _kernels[known] = Kernel(wanted.source, addresses, compiled=False)
    return addresses is not None


def _by_worker(
    wanted: _Wanted, ask: Callable[[bytes], bytes | None], stop: threading.Event
) -> None:
    """Have a worker compile a module, unless another process has. It runs beside the compiler, so
    it loads nothing."""
    from isostep.compile import worker

    name = wanted.name
    with cache.turn(name, stop.is_set):
        if stop.is_set() or cache.load(name) is not None:
            return
        code = ask(worker.request(wanted.source, wanted.flushing, name))
        if code is not None:
            _made[name] = code
            cache.save(name, code, wanted.source)


def compiled(source: str, flushing: int | None, name: str) -> bytes | None:
    """The machine code of a module, for a process that knows its entry by this name; None if it is
    another here: a program may have set what only its own environment tells."""
    wanted = _Wanted(source, flushing)
    if wanted.name != name:
        return None
    return _on_deep_stack(lambda: _compile(source, wanted.entries, wanted.words, flushing))


def _kept(name: str, entries: dict[str, str]) -> dict[str, int] | None:
    """The addresses of an entry's functions; None if there is no entry, or it lacks one of them."""
    code = cache.load(name)
    with contextlib.suppress(RuntimeError):
        return None if code is None else _addresses(code, entries)
    return None


def _addresses(code: bytes, entries: dict[str, str]) -> dict[str, int]:
    """The address of each function in an object file.

    Raises:
        RuntimeError: it lacks one.
    """
    engine = _load(code)
    addresses = {f: engine.get_function_address(entry) for f, entry in entries.items()}
    missing = [function for function, address in addresses.items() if not address]
    if missing:
        raise RuntimeError(f"the machine code of a kernel has no {', '.join(missing)}")
    return addresses


def assemble(text: str, function: str) -> int:
    """The address of a function that is written in LLVM's own language."""

    def work() -> int:
        module = llvm.parse_assembly(text)
        module.verify()
        return _load(target.machine().emit_object(module)).get_function_address(function)

    with _lock:
        return _on_deep_stack(work)


@functools.cache
def _environment() -> str:
    """Everything besides the source that decides what machine code comes out."""
    here = Path(__file__).parent
    files = ("intrinsics.py", "machine_code.py", "optimised.py", "staging.py", "target.py")
    texts = [(here / file).read_text(encoding="utf-8") for file in files]
    versions = [_version_file(package) for package in ("numba", "llvmlite")]
    return "\n".join([*texts, *versions, str(target.host())])


def _version_file(package: str) -> str:
    """What a package says of its version, found without importing it or searching metadata."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"isostep's kernels need {package}: pip install {package}")
    return (Path(spec.origin).parent / "_version.py").read_text(encoding="utf-8")


def _load(code: bytes) -> Any:
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target.machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return engine


def _compile(
    source: str, entries: dict[str, str], words: dict[str, int], flushing: int | None
) -> bytes:
    return target.machine().emit_object(_module(source, entries, words, flushing))


def _module(
    source: str, entries: dict[str, str], words: dict[str, int], flushing: int | None
) -> Any:
    """The source in LLVM's language, with its entry points."""
    numba: Any = importlib.import_module("numba")
    if numba.config.DISABLE_JIT:
        raise RuntimeError(
            "NUMBA_DISABLE_JIT is set, and isostep's kernels are compiled by Numba: unset it, or "
            'use engine="array"'
        )
    functions = written(source)
    text, symbols = _importing_numba("optimised").optimised(
        {functions[f]: words[f] for f in entries}
    )
    entry_points = [
        _entry_point(entry, symbol, words[function], flushing)
        for (function, entry), symbol in zip(entries.items(), symbols, strict=True)
    ]
    module = llvm.parse_assembly("\n".join([text, *entry_points]))
    module.verify()
    return module


def written(source: str) -> dict[str, Any]:
    """The functions of a module, by name, as Python runs them; a debugger finds their source."""
    filename = f"<isostep {cache.key(source)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    scope: dict[str, Any] = {
        "__name__": "isostep_kernel",
        **_importing_numba("intrinsics").BUILTINS,
    }
    exec(compile(source, filename, "exec"), scope)
    made = {name: each for name, each in scope.items() if isinstance(each, FunctionType)}
    return {name: each for name, each in made.items() if each.__code__.co_filename == filename}


def _importing_numba(name: str) -> Any:
    return importlib.import_module(f"isostep.compile.{name}")


def _entry_point(entry: str, inner: str, words: int, flushing: int | None) -> str:
    before, after = "", ""
    if flushing is not None:
        mode = target.flushing_mode(target.host())
        before, after = mode.set, mode.restore
        before = f"""
  %place_of_flag = getelementptr i64, ptr %context, i64 {flushing}
  %flushes = load i64, ptr %place_of_flag
{before}"""
    given = range(words - 1)
    loads = "".join(
        f"""
  %at{k} = getelementptr i64, ptr %row, i64 {k}
  %word{k} = load i64, ptr %at{k}"""
        for k in given
    )
    passed = "".join(f"i64 %word{k}, " for k in given)
    return f"""
define void @{entry}(ptr %args, ptr %counts, ptr %steps, ptr %context) {{
  %row = load ptr, ptr %args{loads}
  %nothing = alloca ptr
  %trouble = alloca ptr
  %address = ptrtoint ptr %context to i64
{before}
  %status = call i32 @"{inner}"(
    ptr %nothing, ptr %trouble, {passed}i64 %address) noinline
{after}
  ret void
}}
"""
