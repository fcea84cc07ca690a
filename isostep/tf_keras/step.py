"""One step of all variables as one TensorFlow function, compiled by XLA where that can be."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import tensorflow as tf

from isostep.engines.leaf import Leaf
from isostep.errors import GradientError
from isostep.functional import FunctionalStep, Task
from isostep.tf_keras import gradients
from isostep.tf_keras import mesh as meshes
from isostep.tf_keras.namespace import MeshNamespace, TensorFlowNamespace
from isostep.tracing import works_by_element

LOG = logging.getLogger("isostep.tf_keras")
PROGRAMS = 4
"""How many sets of gradients get a program of their own in eager loops, which costs a second and
megabytes. Sets that come only once share one program, of all variables."""


class FusedStep:
    """Steps the variables of one optimizer.

    Args:
        optimizer: a `FusedApply` that has its slots.
        variables: what it was built with.
        say_why: log why XLA is not used, where it is not.
    """

    def __init__(self, optimizer: Any, variables: Sequence[Any], say_why: bool = False) -> None:
        self.variables, self._optimizer, self._say_why = list(variables), optimizer, say_why
        self.settings = optimizer.settings()
        self._xp = TensorFlowNamespace() if optimizer._mesh is None else MeshNamespace()
        self._functional: FunctionalStep | None = None
        self._compiled = tf.function(self._assign, autograph=False, jit_compile=True)
        # Sparse gradients have other numbers of rows in each step.
        self._plain = tf.function(self._assign, autograph=False, reduce_retracing=True)
        self._own: set[tuple[int, ...]] = set()
        self._seen: deque[tuple[int, ...]] = deque(maxlen=2 * PROGRAMS)
        self._row_dtypes: dict[int, Any] = {}
        self.ran: list[str] = []

    def again(self) -> FusedStep:
        """The step under the optimizer's present settings."""
        return FusedStep(self._optimizer, self.variables, self._say_why)

    @tf.autograph.experimental.do_not_convert
    def step(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        """One step of `variables`, each of which has a gradient."""
        places = tuple(self._place(v) for v in variables)
        given, rows = list(grads), [None] * len(places)
        for k, gradient in enumerate(grads):
            if isinstance(gradient, tf.IndexedSlices):
                given[k], rows[k] = self._rows(gradient, variables[k])
        present = None
        if tf.executing_eagerly() and not self._has_program(places):
            places, given, rows, present = self._all(places, given, rows)
        self._call(places, given, rows, present)

    @tf.autograph.experimental.do_not_convert
    def update(self, gradient: Any, variable: Any) -> None:
        """One step of one variable by its rule alone."""
        place = self._place(variable)
        task = self._function().rule_alone(place, gradients.as_dense(gradient, variable))
        self._function().reading = lambda source, iteration: source(iteration)
        self._write([task], {}, self._optimizer.iterations, self._optimizer.learning_rate)

    # -- one step --------------------------------------------------------------------------------

    def _call(
        self, places: tuple[int, ...], given: list[Any], rows: list[Any], present: Any
    ) -> None:
        why_not = self._why_not_xla(any(r is not None for r in rows))
        self.ran = [f"array code, tensorflow{'' if why_not else ', xla'}"]
        now = ()
        if self._optimizer._mesh is None:
            # Outside of what XLA compiles: on a GPU an integer variable is elsewhere. Inside on a
            # mesh: what is given there as a number becomes part of the program, once.
            now = self._now()
        if tf.distribute.in_cross_replica_context() and tf.distribute.has_strategy():
            run = self._assign  # the variables of this very device
        else:
            run = self._plain if why_not or present is not None else self._compiled
        run(places, given, rows, present, self._readings(), *now)

    def _now(self) -> tuple[Any, Any]:
        """The step count and the learning rate."""
        return tf.identity(self._optimizer.iterations), tf.identity(self._optimizer.learning_rate)

    def _readings(self) -> list[Any]:
        """What the callables among the hyperparameters give for this step. They are called here,
        each time, and not while the program is made, once."""
        optimizer = self._optimizer
        found = [tf.convert_to_tensor(s(optimizer.iterations)) for s in self._function().sources]
        if optimizer._mesh is None:
            return found
        return [meshes.laid_out(x, meshes.replicated(optimizer._mesh, 0)) for x in found]

    def _assign(
        self,
        places: tuple[int, ...],
        given: list[Any],
        rows: list[Any],
        present: Any,
        readings: list[Any],
        *now: Any,
    ) -> None:
        function = self._function()
        known = dict(zip(function.sources, readings, strict=True))
        function.reading = lambda source, _: known[source]
        tasks = function.tasks(dict(zip(places, given, strict=True)))
        sparse = {p: r for p, r in zip(places, rows, strict=True) if r is not None}
        tasks = [
            replace(t, shape=(-1, *t.leaf.array.shape[1:])) if int(t.leaf.name) in sparse else t
            for t in tasks
        ]
        if present is not None:
            tasks = [replace(t, present=present[int(t.leaf.name)]) for t in tasks]
        self._write(tasks, sparse, *(now or self._now()))

    def _write(self, tasks: list[Task], sparse: dict[int, Any], count: Any, rate: Any) -> None:
        def read(leaf: Leaf, name: str) -> Any:
            held = tf.convert_to_tensor(self._variable(leaf, name))
            rows = sparse.get(int(leaf.name))
            return held if rows is None else tf.gather(held, rows)

        new = self._function().values(tasks, read, count, rate)
        values = iter(new.stores)
        for task in tasks:
            rows = sparse.get(int(task.leaf.name))
            for name in task.stores:
                variable, value = self._variable(task.leaf, name), next(values)
                if rows is None:
                    variable.assign(value)
                else:
                    variable.scatter_update(tf.IndexedSlices(value, rows))
        if new.sums:
            self._optimizer.statistics.assign(tf.stack(new.sums))

    # -- sets of gradients -----------------------------------------------------------------------

    def _has_program(self, places: tuple[int, ...]) -> bool:
        """Whether the variables with a gradient, in this order, have a program of their own: the
        first ones, and those that come again."""
        known = places in self._own
        if not known and (not self._own or places in self._seen) and len(self._own) < PROGRAMS:
            self._own.add(places)
            return True
        self._seen.append(places)
        return known

    def _all(
        self, places: tuple[int, ...], given: list[Any], rows: list[Any]
    ) -> tuple[tuple[int, ...], list[Any], list[Any], Any]:
        """The same step with a gradient for each variable, and which of them are there."""
        there = dict(zip(places, zip(given, rows, strict=True), strict=True))
        for place, (_, indices) in there.items():
            self._row_dtypes[place] = None if indices is None else indices.dtype
        filled = [there.get(k) or self._nothing(k) for k in range(len(self.variables))]
        present = tf.constant([k in there for k in range(len(filled))])
        if self._optimizer._mesh is not None:
            present = meshes.laid_out(present, meshes.replicated(self._optimizer._mesh, 1))
        return tuple(range(len(filled))), [g for g, _ in filled], [r for _, r in filled], present

    def _nothing(self, place: int) -> tuple[Any, Any]:
        """The gradient of a variable that has none: zeros, or no rows where it had some before."""
        variable, dtype = self.variables[place], self._row_dtypes.get(place)
        if dtype is None:
            return tf.zeros_like(variable), None
        shape = (0, *variable.shape[1:])
        return tf.zeros(shape, self._optimizer.dtype_of(variable)), tf.zeros(0, dtype)

    def _function(self) -> FunctionalStep:
        if self._functional is None:
            stepper = self._optimizer.stepper("array")
            self._functional = FunctionalStep(stepper, self._xp, "float64")
        return self._functional

    def _place(self, variable: Any) -> int:
        optimizer = self._optimizer
        place = optimizer._index_dict.get(optimizer._var_key(variable))
        if place is None:
            raise KeyError(
                f"The optimizer cannot recognize variable {variable.name}. It was built for other "
                f"variables: call `optimizer.build(variables)` with all that it will step, before "
                f"the first step, or make another optimizer for this one."
            )
        return place

    def _variable(self, leaf: Leaf, name: str) -> Any:
        place = int(leaf.name)
        return self.variables[place] if name == "param" else self._optimizer.kept(leaf, name)

    # -- sparse gradients ------------------------------------------------------------------------

    def _rows(self, gradient: Any, variable: Any) -> tuple[Any, Any]:
        """What stands for a sparse gradient: a dense one and None, or the sums of rows that stand
        in it twice and the rows."""
        if not self._optimizer.lazy:
            return gradients.as_dense(gradient, variable), None
        function = self._function()
        leaf = function.stepper.leaves[self._place(variable)]
        if not works_by_element(function.stepper.recipe(leaf)):
            raise GradientError(
                f"lazy=True: the sparse gradient of {variable.name!r} cannot be stepped row by "
                f"row: {self._optimizer.rule} looks at a variable as a whole; leave out lazy"
            )
        rows, places = tf.unique(gradient.indices)
        count = tf.shape(rows)[0]
        return tf.math.unsorted_segment_sum(gradient.values, places, count), rows

    # -- XLA -------------------------------------------------------------------------------------

    def _why_not_xla(self, sparse: bool) -> str:
        """Why XLA does not compile this step; empty if it does."""
        optimizer = self._optimizer
        if not optimizer.jit_compile:
            return "jit_compile=False"
        if optimizer._mesh is not None:
            why = "each device of a mesh has a graph of its own"
        elif optimizer._distribution_strategy.num_replicas_in_sync > 1:
            why = "the variables are mirrored on several devices"
        elif sparse:
            why = "the number of rows of a sparse gradient is not known beforehand (lazy=True)"
        else:
            why = xla_fails(self.variables[0].device)
        if why and self._say_why:
            LOG.warning("jit_compile=True: the step is not compiled by XLA: %s", why)
            self._say_why = False
        return why


@cache
def xla_fails(device: str) -> str:
    """Why XLA compiles nothing on a device; empty if it does."""
    try:
        with tf.init_scope(), tf.device(device):
            tf.function(lambda: tf.ones(()) + 1.0, jit_compile=True)()
    except tf.errors.OpError as error:
        return f"TensorFlow has no XLA for {device}: {error.message.splitlines()[0]}"
    return ""
