"""A step by Paddle's own operations: in programs, and for tensors that are not on the CPU.

It is the same functional step that JAX and TensorFlow get. In a program its operations are added
behind the gradients; in a dynamic graph they run at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import paddle

from isostep import commit, dialects
from isostep.engines.leaf import Leaf
from isostep.errors import GradientError, HyperparameterError
from isostep.functional import FunctionalStep
from isostep.paddle import accumulators
from isostep.paddle.accumulators import Slots
from isostep.paddle.hyper import Factor, Hyperparameters, OwnRate
from isostep.paddle.namespace import PaddleNamespace, Value, bare
from isostep.paddle.planning import of_stand_ins
from isostep.paddle.powers import POWERS, powers
from isostep.paddle.tensors import dtype_name
from isostep.report import SUMS, Report
from isostep.rules import Rule

XP = PaddleNamespace()
COUNT = "isostep_step"
LEAST = 1e-38
SLOWEST = 1.0 - 1e-5
"""The beta up to which a float32 power tells each step from the next."""


class ArrayStep:
    """A step of some parameters by array code.

    Args:
        optimizer: whose parameters they are.
        rule: its rule.
        pairs: parameters, each with its gradient.
        owners: the parameter group of each.
    """

    def __init__(
        self, optimizer: Any, rule: Rule, pairs: Sequence[tuple[Any, Any]], owners: Sequence[int]
    ) -> None:
        self._optimizer, self._rule = optimizer, rule
        params = [p for p, _ in pairs]
        accumulators.create(optimizer, params, owners)
        hyper = Hyperparameters(optimizer, rule, optimizer.spelling)
        raw = hyper.raw(params, owners)
        if hyper.foreign(raw):
            pairs = optimizer.prepared(pairs, hyper)
        rate = optimizer.rate()
        self.stepper = of_stand_ins(
            optimizer, hyper, raw, params, lambda factor: _times(rate, factor), "array"
        )
        self._params = {p.name: p for p in params}
        self._given = {k: Value(_dense(g, p)) for k, (p, g) in enumerate(pairs)}
        self._slots = Slots(optimizer, self._params, optimizer.spelling.slots)
        self._group_of = {leaf.name: leaf.group for leaf in self.stepper.leaves}
        self._function = FunctionalStep(self.stepper, XP, "float64")

    @property
    def values_of_each(self) -> list[dict[str, Any]]:
        """The hyperparameters of each parameter."""
        return [self.stepper.groups[leaf.group].values for leaf in self.stepper.leaves]

    def _read(self, leaf: Leaf, name: str) -> Any:
        return Value(self._array(leaf, name))

    def _array(self, leaf: Leaf, name: str) -> Any:
        if name == "model" or (name == "param" and "model" not in leaf.arrays):
            return self._params[leaf.name]
        return self._slots.tensor(leaf, "master" if name == "param" else name)

    def _run(
        self, iteration: Any, counts: dict[str, int] | None = None
    ) -> tuple[Any, list[Any], Any]:
        """What is written, what it becomes, and the values of the step."""
        tasks = self._function.tasks(self._given)
        if counts is not None:
            tasks = [replace(task, steps=counts.get(task.leaf.name, 0)) for task in tasks]
        scale = self._optimizer.loss_scale
        values = self._function.values(tasks, self._read, iteration, loss_scale=scale)
        targets = [self._array(task.leaf, name) for task in tasks for name in task.stores]
        return targets, [bare(value) for value in values.stores], values

    # -- at once ---------------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse accumulators that are not what their parameters need.

        Raises:
            StateError: there is one.
        """
        for leaf in self.stepper.leaves:
            for name, array in self.stepper.kept(leaf).items():
                shape = leaf.slot_shape(self.stepper.per(name))
                self._slots.checked(leaf, name, shape, array.dtype.name)

    def now(
        self, iteration: int, counts: dict[str, int], settle: Callable[[], None]
    ) -> tuple[bool, Report | None]:
        """Step in a dynamic graph.

        Args:
            iteration: steps of the optimizer so far.
            counts: steps of each parameter so far, by name.
            settle: counts the step; part of it, so it must do no harm when it is called twice.

        Returns:
            Whether there was a step, and what it measured.
        """
        options = self.stepper.options
        targets, new, values = self._run(iteration, counts)
        blocked = values.blocked is not None and float(bare(values.blocked)) > 0
        if blocked and options.nonfinite == "raise":
            raise GradientError(
                f"step {iteration + 1}: non-finite gradient elements; no parameter was changed "
                f'(nonfinite="skip" skips such steps, "propagate" lets them through)'
            )
        if not blocked:

            def write(_: commit.Progress) -> None:
                for target, value in zip(targets, new, strict=True):
                    paddle.assign(value, output=target)
                settle()

            commit.run(write)
        if not options.report:
            return not blocked, None
        sums: Any = np.reshape([float(bare(x)) for x in values.sums], (-1, len(SUMS)))
        titles = [group.name for group in self.stepper.groups]
        done = iteration + (not blocked)
        return not blocked, Report.of(titles, sums, done, options.nonfinite)

    # -- in a program ----------------------------------------------------------------------------

    def append(self) -> None:
        """Add the step to the program."""
        self._refuse()
        done, count = self._steps()
        targets, new, values = self._run(Value(done))
        stop = self._optimizer._get_auxiliary_var("found_inf")
        stopped = None if stop is None else paddle.reshape(paddle.cast(stop, "bool"), [])
        if values.blocked is not None:
            bad = bare(values.blocked > 0)
            stopped = bad if stopped is None else paddle.logical_or(stopped, bad)
        after = done + 1
        if count is not None:
            targets.append(count)
            new.append(paddle.reshape(after, [1]))
        for target, value in self._powers(after):
            targets.append(target)
            new.append(value)
        for target, value in zip(targets, new, strict=True):
            kept = value if stopped is None else paddle.where(stopped, target, value)
            paddle.assign(kept, output=target)

    def _refuse(self) -> None:
        options = self.stepper.options
        ema = options.ema
        if options.report or options.nonfinite == "raise":
            name = "report=True" if options.report else 'nonfinite="raise"'
            raise HyperparameterError(
                f"{name} is not possible in a program, which tells no one of what it measures: "
                f"leave it out"
            )
        if ema is not None and ema.start == "initial":
            raise HyperparameterError(
                'EMA(start="initial") is not possible in a program, whose parameters have no '
                'values yet: use start="first_update"'
            )

    def _steps(self) -> tuple[Any, Any]:
        """The steps so far, and the variable that counts them, if there is one.

        Paddle has no such variable: a power tells the steps, or nothing depends on them. Where that
        is so there is none here, so that programs of either load what the other has saved. A power
        of 0 is that of so many steps that all corrections have gone.
        """
        found = {
            self._beta(name, POWERS[power]): tensor
            for name, param in self._params.items()
            for power, tensor in powers(self._optimizer, param).items()
        }
        slowest = max(found, default=0.0)
        paddles = self._rule.name in dialects.get("paddle").spellings
        if not paddles or self.stepper.options.ema is not None or slowest > SLOWEST:
            first = next(iter(self._params.values()))
            made = self._optimizer._add_accumulator(COUNT, first, dtype="int64", shape=[1])
            return paddle.reshape(made, []), made
        if slowest == 0.0:
            return paddle.full([], 0, "int64"), None
        least = paddle.full([1], LEAST, "float64")
        power = paddle.maximum(paddle.cast(found[slowest], "float64"), least)
        logarithm = paddle.full([1], float(np.log(slowest)), "float64")
        steps = paddle.round(paddle.log(power) / logarithm) - 1.0
        return paddle.reshape(paddle.cast(steps, "int64"), []), None

    def _powers(self, after: Any) -> list[tuple[Any, Any]]:
        """Paddle's powers of the betas, and what they are after the step."""
        found: list[tuple[Any, Any]] = []
        known: dict[Any, Any] = {}
        for name, param in self._params.items():
            for power, tensor in powers(self._optimizer, param).items():
                dtype: Any = dtype_name(tensor.dtype)
                beta = self._beta(name, POWERS[power])
                if (beta, dtype) not in known:
                    exponent = paddle.cast(after, "float64") + 1.0
                    value = paddle.full([], beta, "float64") ** exponent
                    known[beta, dtype] = paddle.reshape(paddle.cast(value, dtype), [1])
                found.append((tensor, known[beta, dtype]))
        return found

    def _beta(self, name: str, beta: str) -> float:
        return float(self.stepper.groups[self._group_of[name]].values[beta])


def _times(rate: Any, factor: Factor) -> Any:
    """The learning rate of a group; of a variable, a function that gives it."""
    if isinstance(factor, OwnRate):
        rate, factor = factor.value, 1.0
    if isinstance(rate, float):
        return rate * factor
    return lambda _: XP.apply("mul", [Value(rate), factor])


def _dense(grad: Any, param: Any) -> Any:
    """The gradient as a dense tensor; rows of an embedding that Paddle gives alone are spread
    out."""
    if paddle.in_dynamic_mode() and grad.is_selected_rows():
        wide = "float64" if grad.dtype == paddle.float64 else "float32"
        rows = paddle.to_tensor(grad.rows(), "int64")
        values = paddle.cast(grad._get_tensor_from_selected_rows(), wide)
        return paddle.scatter_nd_add(paddle.zeros(param.shape, wide), rows.unsqueeze(1), values)
    return grad
