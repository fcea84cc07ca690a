"""An optimizer as optax has it, a pair of pure functions, and beside them the fused step."""

from __future__ import annotations

from typing import Any

import optax

from isostep.jax.layout import State
from isostep.jax.made import Made
from isostep.jax.steps import Steps
from isostep.plan import Plan
from isostep.report import Report

__all__ = ["Made", "Optimizer", "State"]


class Optimizer(optax.GradientTransformationExtraArgs):
    """`init` and `update` of optax' contract, and a step in one.

    Every function is pure and can be traced: under jit, vmap, grad and scan, in `optax.chain` and
    optax' wrappers. A state is optax' own, field by field, which goes on in either library; with
    groups, an average, float32 copies, a report, other dtypes of slots or another dialect there is
    more to keep, and it is a `State`.
    """

    steps: Steps

    def __new__(cls, made: Made) -> Optimizer:
        """The optimizer of what it is made of."""
        steps = Steps(made)
        update: Any = steps.update
        self: Any = super().__new__(cls, steps.states.init, update)
        self.steps = steps
        return self

    def apply(self, params: Any, grads: Any, state: Any) -> tuple[Any, Any]:
        """One step, without a tree of updates between.

        Under `jax.jit(optimizer.apply, donate_argnums=(0, 2))` it is in place. What runs it is the
        `engine` of the optimizer: isostep's kernels need a program for one CPU, and are not
        exported with it. What `vmap` and derivatives transform is the array code.

        Args:
            params: the parameters.
            grads: a gradient for each; None for those without.
            state: from `init` or the last step, of this optimizer or of optax'.

        Returns:
            The new parameters, in their own dtypes, and the new state.

        Raises:
            GradientError: a gradient has another shape than its parameter.
            HyperparameterError: gradients or state have another structure than the parameters.
            RuntimeError: the engine is `"native"`, and kernels cannot run; under jit, it is raised
                when the program is compiled.
        """
        return self.steps.apply(params, grads, state)

    def from_optax(self, state: Any, params: Any) -> Any:
        """A state of this optimizer that goes on where one of optax' function of its name is.

        Steps take such states as they are; this is for whoever needs the structure beforehand.

        Args:
            state: from optax.
            params: the parameters; averages and float32 copies begin as these.

        Raises:
            HyperparameterError: it is another optimizer's.
        """
        return self.steps.states.from_optax(state, params)

    def to_optax(self, state: Any, params: Any) -> Any:
        """A state of optax' function of this name that goes on where one of this optimizer is;
        averages, float32 copies and statistics stay behind.

        Args:
            state: from `init` or the last step.
            params: the parameters, or their shapes.

        Raises:
            HyperparameterError: optax has no such optimizer.
        """
        return self.steps.states.to_optax(state, params)

    def averaged(self, state: Any) -> Any:
        """The moving average of the parameters, a tree like them; None without `ema`."""
        return getattr(state, "average", None)

    def report(self, state: Any) -> Report | None:
        """What the last step measured, if the optimizer was made with `report=True`; reading it
        waits for the step."""
        return self.steps.report(state)

    def plan(self, params: Any) -> Plan:
        """What a step will do: groups, slots, bytes of each parameter; nothing runs.

        Args:
            params: the parameters, or anything with their shapes and dtypes.
        """
        return self.steps.plan(params)
