"""`apply` on Keras' torch backend: the native engine on the tensors of the variables."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from keras.src.backend.common.stateless_scope import in_stateless_scope  # has no public name
from torch.autograd.graph import increment_version

from isostep.engines.cohort import Runner
from isostep.engines.leaf import Leaf
from isostep.engines.native import NativeRunner
from isostep.keras.gradients import dense
from isostep.keras.traced import TracedApply
from isostep.report import Report
from isostep.torch import watch
from isostep.torch.gradients import Gradients
from isostep.torch.overlap import Stretches, bounds, check_apart, layers
from isostep.torch.own_step import NotOurs, odd
from isostep.torch.tensors import DTYPE_NAMES, check_steppable, numpy_view, oddity

# `value` asks five global settings first, and may be a copy in another dtype.
_tensor: Any = operator.attrgetter("_value")


class NativeApply(TracedApply):
    """Steps the variables of one optimizer by kernels; tensors that kernels do not know by array
    code."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer)
        self._kernels: _Kernels | None = None
        self._by_kernels = False
        self.measured: Report | None = None

    @property
    def ran(self) -> list[str]:
        """What ran in the last step, one entry for each kernel."""
        if self._kernels is None or not self._by_kernels:
            return super().ran
        return self._kernels.stepper.ran

    def apply(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        """One step of `variables`; those without gradient are not among them."""
        with torch.no_grad():
            # In a stateless scope variables have other values, which a step must not write to.
            by_kernels = not (self._accumulates or in_stateless_scope())
            self._by_kernels = by_kernels and self._try_kernels(grads, variables)
            if not self._by_kernels:
                self.measured = None
                super().apply(grads, variables)

    def _try_kernels(self, grads: Sequence[Any], variables: Sequence[Any]) -> bool:
        """One step by kernels, if they know all tensors; else nothing."""
        try:
            kernels = self._fitting()
            given: list[Any] = [None] * len(kernels.params)
            for gradient, variable in zip(grads, variables, strict=True):
                given[self._index(variable)] = _checked(gradient, variable)
            dtypes = kernels.gradients.collect(given, _no_decay)
        except NotOurs:
            return False
        optimizer, made = self._optimizer, kernels.stepper
        rate = float(optimizer.learning_rate)
        for group, follows in zip(made.groups, kernels.follows, strict=True):
            if follows:
                group.values["lr"] = rate
        made.iteration = int(optimizer.iterations)
        try:
            self.measured = made.step(dtypes, kernels.bind, settle=self._settle)
        finally:
            kernels.gradients.release()
        return True

    def _settle(self) -> None:
        assert self._kernels is not None
        increment_version(self._kernels.written)  # kernels write past autograd's eyes
        self.stepped = True

    def _fitting(self) -> _Kernels:
        """What steps by kernels, made again if a variable is not what it was."""
        if self._kernels is None or not self._kernels.fit():
            self._kernels = _Kernels(self, self._optimizer)
        return self._kernels


class _Kernels:
    """A stepper over the tensors of an optimizer's variables, as these are now.

    Args:
        finder: finds the variable of a slot.
        optimizer: the optimizer.

    Raises:
        NotOurs: a tensor is one that kernels do not know.
        ParameterError: a variable cannot be stepped.
    """

    def __init__(self, finder: TracedApply, optimizer: Any) -> None:
        self._finder, self._optimizer = finder, optimizer
        self._variables: list[Any] = []
        self.params: list[torch.Tensor] = []
        self._slots: dict[tuple[str, str], torch.Tensor] = {}
        self.stepper = optimizer.stepper("native", self._view, self._allocate)
        self.follows = [group.values["lr"] is None for group in self.stepper.groups]
        of_params, of_slots = bounds(self.params), bounds(list(self._slots.values()))
        check_apart(list(self._slots), of_slots, of_params)
        layers(self.stepper.leaves, list(range(len(self.params))), of_params)
        self._tensors = list(map(_tensor, self._variables))
        self.written = [*self.params, *self._slots.values()]
        self._same = watch.tensors(self._tensors)
        stretches = Stretches(np.concatenate([of_params, of_slots]))
        self.gradients = Gradients(self.stepper, self.params, stretches, optimizer.rule)

    def fit(self) -> bool:
        """Whether the tensors are those of before, where they were and as they were."""
        now = map(_tensor, self._variables)
        return all(map(operator.is_, now, self._tensors)) and self._same()

    def bind(self, runner: Runner) -> None:
        """Hand the gradients of a cohort to its runner."""
        assert isinstance(runner, NativeRunner)
        runner.refresh("grad", self.gradients.addresses[runner.cohort.members])

    def _view(self, variable: Any) -> np.ndarray[Any, Any]:
        tensor, name = self._known(variable), self._optimizer.name_of(variable)
        check_steppable(tensor, name, self._optimizer.rule)
        self.params.append(tensor)
        return numpy_view(tensor)

    def _allocate(self, leaf: Leaf, name: str, per: Any, dtype: Any, initial: Any) -> Any:
        tensor = self._known(self._finder._variable(leaf, name))
        order = leaf.order_in_memory(per)
        fits = tuple(tensor.shape) == leaf.slot_shape(per)
        if not fits or not tensor.permute(order).is_contiguous():
            raise odd(f"the variable for {name!r}", "of another shape, or order in memory")
        self._slots[leaf.name, name] = tensor
        return numpy_view(tensor).transpose(order).reshape(-1)

    def _known(self, variable: Any) -> torch.Tensor:
        tensor = variable._value
        why = oddity(tensor) or ("" if tensor.is_cpu else f"on {tensor.device}")
        if why or tensor.dtype not in DTYPE_NAMES:
            raise odd(f"variable {variable.name!r}", why or f"of {tensor.dtype}")
        self._variables.append(variable)
        return tensor


def _checked(gradient: Any, variable: Any) -> torch.Tensor:
    tensor = variable._value
    usual = isinstance(gradient, torch.Tensor) and gradient.layout is torch.strided
    if not usual or gradient.shape != tensor.shape:
        gradient = dense(gradient, variable)
    return gradient if gradient.dtype in DTYPE_NAMES else gradient.to(tensor.dtype)


def _no_decay(index: int) -> float:
    """Sparse gradients come dense: decay changes nothing about them."""
    return 0.0
