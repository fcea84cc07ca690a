"""A step by the native engine inside a program that XLA compiles for one CPU.

A step is one operation of JAX with two forms: array code, which can be transformed and runs
everywhere, and a call of the generated kernels, which step all arrays where they lie. Which of
them a program gets is decided when it is lowered: only then are its platform and devices known.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from numpy.typing import NDArray

from isostep.commit import Progress
from isostep.engines.cohort import Outcome, Runner, execute
from isostep.engines.leaf import Leaf
from isostep.engines.native import NativeRunner
from isostep.functional import (
    Arrays,
    FunctionalStep,
    Hypers,
    Kind,
    Task,
    Values,
    of_coefficients,
)
from isostep.jax.ffi import Addresses, Target
from isostep.lock import Lock
from isostep.report import SUMS
from isostep.stepper import DTYPES

Engine = Literal["auto", "xla", "native"]
ENGINES = ("auto", "xla", "native")

MANY = 1 << 15  # elements of a parameter: if they have fewer on average, XLA is faster
TARGET = "isostep_step"


class Step:
    """One step of certain parameters with gradients of certain dtypes.

    Its operands are the coefficients, one vector for each dtype of the arithmetic, and what tasks
    read and write; its results are what they write, the sums of a report, and the number of
    non-finite gradient elements, the last two as far as the recipes ask for them.

    Steps that do the same are equal, whichever optimizer they belong to. Programs keep them, so
    they hold no array: of each gradient they have shape and dtype.

    Args:
        function: what computes it.
        tasks: what is done.
        coefficients: those of the tasks; array code knows the numbers among them.
        required: whether array code will not do.
    """

    def __init__(
        self,
        function: FunctionalStep,
        tasks: Sequence[Task],
        coefficients: Mapping[Kind, Mapping[str, Any]],
        required: bool,
    ) -> None:
        self.function, self.tasks, self.required = function, _shapes(tasks), required
        self.named = [(kind, name) for kind, given in coefficients.items() for name in given]
        self.vectors = sorted({of_coefficients(kind[1]) for kind, _ in self.named})
        self.arrays = [(k, name) for k, task in enumerate(tasks) for name in self._read(task)]
        self.stores = [(k, name) for k, task in enumerate(tasks) for name in task.stores]
        self.reports = any(task.recipe.report for task in tasks)
        self.skips = any(task.recipe.nonfinite == "skip" for task in tasks)
        self._numbers = {
            (kind, name): coefficients[kind][name]
            for kind, name in self.named
            if isinstance(coefficients[kind][name], bool | int | float)
        }
        self._key = (
            tuple((t.recipe, self._form(t)) for t in tasks),
            tuple(self._numbers.items()),
            tuple(self.named),
            len(function.stepper.groups),
            required,
        )
        self._hash = hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Step) and self._key == other._key

    def __hash__(self) -> int:
        return self._hash

    def _read(self, task: Task) -> list[str]:
        return [*task.arrays, *([] if task.gradient is None else ["grad"])]

    def _form(self, task: Task) -> tuple[Any, ...]:
        leaf = task.leaf
        dtypes = tuple((name, self.dtype(task, name)) for name in self._read(task))
        return leaf.group, leaf.array.shape, leaf.array.dtype.name, leaf.factored_axes, dtypes

    # -- arrays ----------------------------------------------------------------------------------

    def dtype(self, task: Task, name: str) -> str:
        """The dtype of an array, as the kernels expect it."""
        return (task.gradient if name == "grad" else task.leaf.arrays[name]).dtype.name

    def shape(self, task: Task, name: str) -> tuple[int, ...]:
        """The shape of an array."""
        return task.leaf.slot_shape(self.function.stepper.per(name))

    def layout(self, task: Task, name: str) -> tuple[int, ...]:
        """The axes of an array from the innermost in the memory that kernels walk."""
        order = task.leaf.order_in_memory(self.function.stepper.per(name))
        shape = self.shape(task, name)
        walked = [axis for axis in order if shape[axis] != 1]
        return tuple(reversed(order if walked != sorted(walked) else sorted(order)))

    @property
    def elements(self) -> int:
        """How many elements all parameters have."""
        return sum(task.leaf.array.size for task in self.tasks)

    # -- operands and results --------------------------------------------------------------------

    def operands(
        self,
        tasks: Sequence[Task],
        arrays: Arrays,
        coefficients: Mapping[Kind, Mapping[str, Any]],
    ) -> list[Any]:
        """What the operation works on; `tasks` are its own, with gradients."""
        vectors = [
            jnp.stack([jnp.asarray(coefficients[kind][name], dtype) for kind, name in named])
            for dtype in self.vectors
            if (named := self.in_vector(dtype))
        ]
        read = [
            tasks[k].gradient if name == "grad" else arrays(tasks[k].leaf, name)
            for k, name in self.arrays
        ]
        return [*vectors, *map(jnp.asarray, read)]

    def in_vector(self, dtype: str) -> list[tuple[Kind, str]]:
        """The coefficients in the vector of a dtype, in order."""
        return [(kind, name) for kind, name in self.named if of_coefficients(kind[1]) == dtype]

    @cached_property
    def place(self) -> dict[tuple[int, str], int]:
        """The place among the operands of each array, by the task's place and its name."""
        return {array: len(self.vectors) + n for n, array in enumerate(self.arrays)}

    def misfit(self, operands: Sequence[Any]) -> str | None:
        """Why kernels made for this step cannot run on these operands, if they cannot."""
        for (k, name), operand in zip(self.arrays, operands[len(self.vectors) :], strict=True):
            task = self.tasks[k]
            found = operand.dtype.name, operand.shape
            expected = self.dtype(task, name), self.shape(task, name)
            if found[0] not in DTYPES:
                return f"{name!r} is a {found[0]}, which no kernel steps"
            if found != expected:
                return f"{name!r} is a {found[0]} of shape {found[1]}, where {expected[0]} of " + (
                    f"shape {expected[1]} is stepped"
                )
            if name in task.dtypes:
                return f"{name!r} is to become a {task.dtypes[name]}"
            if not jax.typeof(operand).sharding.mesh.empty:
                return "arrays lie on a mesh"
        return None if self.elements else "there is nothing to step"

    def outputs(self, *operands: Any) -> list[Any]:
        """The shapes and dtypes of the results."""
        found = [operands[self.place[stored]] for stored in self.stores]
        made = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in found]
        if self.reports:
            sums = len(self.function.stepper.groups) * len(SUMS)
            made.append(jax.ShapeDtypeStruct((sums,), jnp.float32))
        if self.skips:
            made.append(jax.ShapeDtypeStruct((), jnp.int32))
        return made

    def values(self, results: Sequence[Any]) -> Values:
        """What the results mean."""
        rest = iter(results[len(self.stores) :])
        sums = next(rest) if self.reports else []
        return Values(list(results[: len(self.stores)]), sums, next(rest) if self.skips else None)

    def array_code(self, *operands: Any) -> list[Any]:
        """The step as functions of `jax.numpy`."""
        coefficients: dict[Kind, dict[str, Any]] = {}
        for dtype, vector in zip(self.vectors, operands, strict=False):
            for n, (kind, name) in enumerate(self.in_vector(dtype)):
                value = self._numbers.get((kind, name))
                coefficients.setdefault(kind, {})[name] = vector[n] if value is None else value
        place = {id(task.leaf): k for k, task in enumerate(self.tasks)}
        tasks = [
            task
            if task.gradient is None
            else replace(task, gradient=operands[self.place[k, "grad"]])
            for k, task in enumerate(self.tasks)
        ]

        def read(leaf: Leaf, name: str) -> Any:
            return operands[self.place[place[id(leaf)], name]]

        found = self.function.values_by(tasks, read, coefficients)
        results = list(found.stores)
        if self.reports:
            results.append(jnp.stack(found.sums))
        if self.skips:
            results.append(jnp.asarray(found.blocked, jnp.int32))
        return results


def _shapes(tasks: Sequence[Task]) -> list[Task]:
    """Tasks whose gradients have no memory."""

    def shape(gradient: Any) -> Any:
        return None if gradient is None else jax.ShapeDtypeStruct(gradient.shape, gradient.dtype)

    return [replace(task, gradient=shape(task.gradient)) for task in tasks]


class Kernels:
    """The native form of a step: a call with the addresses of its operands and results.

    Args:
        step: what it does.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        stepper = step.function.stepper
        place = {id(task.leaf): k for k, task in enumerate(step.tasks)}
        dtypes: list[str | None] = [None] * len(stepper.leaves)
        for n, leaf in enumerate(stepper.leaves):
            if id(leaf) in place and step.tasks[place[id(leaf)]].gradient is not None:
                dtypes[n] = step.dtype(step.tasks[place[id(leaf)]], "grad")
        ready = stepper.own_cohorts(tuple(dtypes))
        self._active, self._idle = ready.runners, ready.idle
        self._tables = [
            _Table(step, runner, [place[id(stepper.leaves[k])] for k in runner.cohort.members])
            for runner in (*self._active, *self._idle)
        ]
        # Two threads may run one program at a time, and it has one set of tables.
        self._lock = Lock()
        filled = [n for n, (k, _) in enumerate(step.stores) if step.tasks[k].leaf.array.size]
        self._stores = np.array(filled, dtype=np.intp)
        self._stored = np.array([step.place[step.stores[n]] for n in filled], dtype=np.intp)

    @property
    def identity(self) -> str:
        """All that the call depends on, the same in every process."""
        tables = [table.identity for table in self._tables]
        return repr((tables, self._step.named, self._step.stores, self._step.arrays))

    def __call__(self, operands: Addresses, results: Addresses) -> None:
        """Step the arrays at these addresses.

        Raises:
            RuntimeError: a result does not lie where the array lies that it replaces.
        """
        if not np.array_equal(operands[self._stored], results[self._stores]):
            raise RuntimeError("results must lie where the arrays lie that they replace")
        step = self._step
        vectors = [
            _array(address, len(step.in_vector(dtype)), dtype)
            for dtype, address in zip(step.vectors, operands.tolist(), strict=False)
        ]
        numbers = np.concatenate(vectors, dtype=np.float64)
        with self._lock:
            for table in self._tables:
                table.bind(operands)
            coefficients = [table.coefficients(numbers) for table in self._tables]
            active = len(self._active)
            outcome = execute(self._active, coefficients[:active], Progress())
            if self._idle and not outcome.blocked:
                execute(self._idle, coefficients[active:], Progress())
        self._write(outcome, results[len(step.stores) :].tolist())

    def _write(self, outcome: Outcome, rest: list[int]) -> None:
        step, groups = self._step, len(self._step.function.stepper.groups)
        if step.reports:
            sums = np.zeros((groups, len(SUMS)))
            for table, found in zip(self._tables, outcome.statistics, strict=False):
                for n, name in enumerate(SUMS):
                    np.add.at(sums[:, n], table.groups, found.get(name, 0.0))
            _array(rest[0], sums.size, "float32")[:] = sums.ravel()
        if step.skips:
            _array(rest[-1], 1, "int32")[:] = outcome.blocked


class _Table:
    """Where a cohort finds its arrays and coefficients among a step's operands.

    Args:
        step: the step.
        runner: the cohort, made ready.
        tasks: the places of its tensors' tasks.
    """

    def __init__(self, step: Step, runner: Runner, tasks: Sequence[int]) -> None:
        assert isinstance(runner, NativeRunner)
        self._runner = runner
        names = [array.name for array in runner.cohort.arrays]
        self._columns = np.array([[step.place.get((k, n), -1) for n in names] for k in tasks])
        kinds = [step.tasks[k].kind for k in tasks]
        self.groups = np.array([kind[0] for kind in kinds], dtype=np.intp)
        order = [named for dtype in step.vectors for named in step.in_vector(dtype)]
        number = {named: n for n, named in enumerate(order)}
        read = [node.name for node in runner.cohort.schedule.inputs]
        self._numbers = {
            name: np.array([number[kind, name] for kind in kinds], dtype=np.intp) for name in read
        }
        self._alike = len(set(kinds)) == 1

    @property
    def identity(self) -> tuple[Any, ...]:
        cohort = self._runner.cohort
        numbers = {name: n.tolist() for name, n in self._numbers.items()}
        return self._runner.source, cohort.shapes, self._columns.tolist(), numbers

    def bind(self, operands: Addresses) -> None:
        """Set the addresses of all arrays; 0 where there is none."""
        self._runner.addresses[...] = np.append(operands, 0)[self._columns]

    def coefficients(self, numbers: NDArray[np.float64]) -> dict[str, Any]:
        """See `cohort.execute`."""
        if self._alike:
            return {name: float(numbers[n[0]]) for name, n in self._numbers.items()}
        return {name: numbers[n] for name, n in self._numbers.items()}


def _array(address: int, size: int, dtype: str) -> NDArray[Any]:
    """The array at an address."""
    words = np.dtype(dtype).itemsize * size
    return np.frombuffer(memoryview((ctypes.c_char * words).from_address(address)), dtype)


# -- the operation of JAX --------------------------------------------------------------------------

_operation = Primitive("isostep_step")
_operation.multiple_results = True


@functools.cache
def _target() -> Target:
    return Target(TARGET)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _run(step: Step, *operands: Any) -> list[Any]:
    return _operation.bind(*operands, step=step)


@_run.defjvp
def _differentiated(step: Step, primals: Any, tangents: Any) -> Any:
    return jax.jvp(step.array_code, primals, tangents)


@_operation.def_abstract_eval
def _abstract(*operands: Any, step: Step) -> list[Any]:
    return [ShapedArray(x.shape, x.dtype) for x in step.outputs(*operands)]


@_operation.def_impl
def _evaluated(*operands: Any, step: Step) -> list[Any]:
    # Like every operation it is compiled by itself, also where functions are not, or are run again
    # without: there the function that is compiled would come here again.
    with jax.disable_jit(False), jax.debug_nans(False), jax.debug_infs(False):
        results = _compiled(step)(*operands)
    for wanted, found, kind in (
        (jax.config.values["jax_debug_nans"], jnp.isnan, "nan"),
        (jax.config.values["jax_debug_infs"], jnp.isinf, "inf"),
    ):
        if wanted and any(found(x).any() for x in results):
            raise FloatingPointError(f"invalid value ({kind}) encountered in {TARGET}")
    return results


@functools.lru_cache(maxsize=64)
def _compiled(step: Step) -> Any:
    return jax.jit(functools.partial(_operation.bind, step=step))


def _batched(operands: Sequence[Any], axes: Sequence[Any], step: Step) -> Any:
    results = jax.vmap(step.array_code, in_axes=list(axes))(*operands)
    return results, [0] * len(results)


def _lowered(context: Any, *operands: Any, step: Step) -> Any:
    """The form for any platform."""
    if step.required:
        raise _impossible(f"it is compiled for {', '.join(context.module_context.platforms)}")
    return mlir.lower_fun(step.array_code, multiple_results=True)(context, *operands)


def _lowered_on_cpu(context: Any, *operands: Any, step: Step) -> Any:
    """The form for the CPU: kernels, if one process runs the program on one device."""
    module = context.module_context
    devices = getattr(module.axis_context, "num_devices", None)
    reason = None
    if devices != 1:
        reason = f"the program is for {devices or 'several'} devices"
    elif module.lowering_parameters.for_export:
        reason = "an exported program cannot take kernels with it"
    if reason is None:
        return _call(context, *operands, step=step)
    if step.required:
        raise _impossible(reason)
    return mlir.lower_fun(step.array_code, multiple_results=True)(context, *operands)


def _call(context: Any, *operands: Any, step: Step) -> Any:
    kernels = Kernels(step)
    identity = kernels.identity
    number = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") >> 1
    _target().add(number, identity, lambda: kernels)
    layouts = {place: step.layout(step.tasks[k], n) for (k, n), place in step.place.items()}
    stored = [step.place[array] for array in step.stores]
    extra = len(context.avals_out) - len(stored)
    rule = jax.ffi.ffi_lowering(
        TARGET,
        operand_layouts=[layouts.get(n, (0,)) for n in range(len(operands))],
        result_layouts=[*(layouts[n] for n in stored), *[None] * extra],
        operand_output_aliases={operand: result for result, operand in enumerate(stored)},
        has_side_effect=True,
    )
    return rule(context, *operands, program=np.int64(number))


batching.primitive_batchers[_operation] = _batched
mlir.register_lowering(_operation, _lowered)
mlir.register_lowering(_operation, _lowered_on_cpu, platform="cpu")


# -- what a front-end calls ------------------------------------------------------------------------


def takes_kernels(engine: Engine, sizes: Sequence[int]) -> bool:
    """Whether parameters of these sizes are to be stepped by kernels, where these can run."""
    if engine == "auto":
        return jax.default_backend() == "cpu" and sum(sizes) >= MANY * max(1, len(sizes))
    return engine == "native"


def values(
    function: FunctionalStep,
    tasks: Sequence[Task],
    arrays: Arrays,
    count: Any,
    hypers: Hypers,
    required: bool,
) -> Values:
    """What a step computes, by kernels if its stepper is made for them and they can run; see
    `FunctionalStep.values`.

    Args:
        function, tasks, arrays: as there.
        count: number of steps that were completed.
        hypers: the hyperparameters of each group in this step.
        required: whether it is an error if kernels cannot run.

    Raises:
        RuntimeError: kernels cannot run, and must.
    """
    coefficients = function.coefficients(tasks, count, values=hypers)
    if function.stepper.engine == "native":
        step = Step(function, tasks, coefficients, required)
        operands = step.operands(tasks, arrays, coefficients)
        reason = step.misfit(operands)
        if reason is None:
            return step.values(_run(step, *operands))
        if required:
            raise _impossible(reason)
    return function.values_by(tasks, arrays, coefficients)


def _impossible(reason: str) -> RuntimeError:
    return RuntimeError(
        f'engine="native" cannot take this step: {reason}; use engine="auto", which then lets XLA '
        f"compile it"
    )
