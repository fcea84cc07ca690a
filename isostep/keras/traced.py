"""`apply` as array code: what JAX and TensorFlow compile into their own training step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from keras import backend, ops

from isostep import commit
from isostep.dialects.keras import KEEPS_OTHER_SUMS
from isostep.engines.leaf import Leaf
from isostep.errors import HyperparameterError
from isostep.functional import NO_AVERAGE, FunctionalStep, Task
from isostep.keras.gradients import dense
from isostep.keras.namespace import KerasNamespace
from isostep.report import Report

XP = KerasNamespace()


class TracedApply:
    """Steps the variables of one optimizer by array code.

    Args:
        optimizer: a `FusedApply`, built; its variables are read and assigned, in whatever scope
            Keras has set up.
    """

    measured: Report | None = None  # what did not go into the variable for it
    stepped = False  # whether the step that was asked for last is done

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._accumulates = bool(optimizer.gradient_accumulation_steps)
        if self._accumulates and not hasattr(optimizer, "_accumulated_gradients"):
            raise HyperparameterError(
                "gradient_accumulation_steps was switched on after the optimizer was built, "
                "without variables for the sums: make a new optimizer"
            )
        # JAX has float64 only where the user has asked for it.
        counts = None if backend.backend() == "jax" else "float64"
        self._function = FunctionalStep(optimizer.stepper("array"), XP, counts)
        leaves = self._function.stepper.leaves
        self._places = {int(leaf.name): place for place, leaf in enumerate(leaves)}

    @property
    def ran(self) -> list[str]:
        """What runs a step."""
        return [f"array code, {backend.backend()}"]

    def apply(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        """One step of `variables`; those without gradient are not among them."""
        given = {self._index(v): dense(g, v) for g, v in zip(grads, variables, strict=True)}
        if self._accumulates:
            self._accumulate(given)
        else:
            self._step(self._function.tasks(given))

    def update(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One step of one variable by its rule alone."""
        gradient = dense(gradient, variable)
        self._step([self._function.rule_alone(self._index(variable), gradient)], learning_rate)

    # -- one step --------------------------------------------------------------------------------

    def _index(self, variable: Any) -> int:
        """The place of a variable's leaf."""
        return self._places[self._optimizer._get_variable_index(variable)]

    def _variable(self, leaf: Leaf, name: str) -> Any:
        if name == "param":
            return self._optimizer.stepped_variables()[int(leaf.name)]
        return self._optimizer.kept(leaf, name)

    def _read(self, leaf: Leaf, name: str) -> Any:
        return ops.convert_to_tensor(self._variable(leaf, name))

    def _step(self, tasks: list[Task], rate: Any = None) -> None:
        targets, values = self._targets(tasks), self._values(tasks, rate)
        commit.run(lambda _: self._assign(targets, values))

    def _assign(self, variables: list[Any], values: list[Any]) -> None:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        self.stepped = True

    def _targets(self, tasks: list[Task]) -> list[Any]:
        """The variables that a step writes."""
        found = [self._variable(task.leaf, name) for task in tasks for name in task.stores]
        statistics = self._optimizer.statistics
        return found + [statistics] * any(task.recipe.report for task in tasks)

    def _values(self, tasks: list[Task], rate: Any = None) -> list[Any]:
        """What they become."""
        optimizer = self._optimizer
        rate = optimizer.learning_rate if rate is None else rate
        new = self._function.values(tasks, self._read, optimizer.iterations, rate)
        return new.stores + ([ops.stack(new.sums)] if new.sums else [])

    # -- several gradients to a step -------------------------------------------------------------

    def _accumulate(self, given: dict[int, Any]) -> None:
        """Add up gradients; every so many of them are a step. The average moves each time, as
        Keras' does."""
        optimizer = self._optimizer
        steps = optimizer.gradient_accumulation_steps
        now = ops.equal((optimizer._iterations + 1) % steps, 0)
        leaves = self._function.stepper.leaves
        sums = {k: optimizer._accumulated_gradients[int(leaves[k].name)] for k in given}
        total = {k: ops.cast(g, sums[k].dtype) + sums[k] for k, g in given.items()}
        tasks = self._function.tasks({k: g / steps for k, g in total.items()}, NO_AVERAGE)
        targets = self._targets(tasks)
        new: Any = ops.cond(
            now,
            lambda: self._values(tasks),
            lambda: [ops.convert_to_tensor(variable) for variable in targets],
        )
        held = [(sums[k], g) for k, g in total.items()] + self._reset_too(sums.values())
        targets = [*targets, *(variable for variable, _ in held)]
        new = [*new, *(ops.where(now, ops.zeros_like(g), g) for _, g in held)]

        def write(progress: commit.Progress) -> None:
            progress.write(lambda: (new, None), lambda values: self._assign(targets, values))
            if optimizer.use_ema:
                averaged = self._function.averaging()
                progress.write(
                    lambda: (self._values(averaged), None),
                    lambda values: self._assign(self._targets(averaged), values),
                )

        commit.run(write)

    def _reset_too(self, given: Iterable[Any]) -> list[tuple[Any, Any]]:
        """The sums of variables that have no gradient now, which a step resets all the same, and
        what they are."""
        if backend.backend() in KEEPS_OTHER_SUMS:
            return []
        known = set(map(id, given))
        every = self._optimizer._accumulated_gradients
        return [
            (v, ops.convert_to_tensor(v)) for v in every if v is not None and id(v) not in known
        ]
