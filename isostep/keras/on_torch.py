"""`apply` on Keras' torch backend: the native engine on the tensors of the variables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import increment_version

from isostep.engines.cohort import Runner
from isostep.engines.leaf import Leaf
from isostep.engines.native import NativeRunner
from isostep.keras.gradients import dense
from isostep.keras.traced import TracedApply
from isostep.report import Report
from isostep.stepper import Stepper
from isostep.torch.addresses import addresses
from isostep.torch.tensors import DTYPE_NAMES, numpy_view


class NativeApply(TracedApply):
    """Steps the variables of one optimizer by kernels; tensors on other devices by array code."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer)
        self._native: Stepper | None = None
        self._tensors: list[torch.Tensor] = []
        self.measured: Report | None = None
        self._where = addresses([])
        self._grads = addresses([])

    @property
    def ran(self) -> list[str]:
        """What ran in the last step, one entry for each kernel."""
        return super().ran if self._native is None else self._native.ran

    def apply(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        """One step of `variables`; those without gradient are not among them."""
        # `_value` is the tensor itself; `value` asks five global settings first.
        on_cpu = all(v._value.is_cpu for v in variables)
        with torch.no_grad():
            if not on_cpu or self._accumulates:
                super().apply(grads, variables)
            else:
                self._apply(grads, variables)

    def _apply(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        made, optimizer = self._fresh(), self._optimizer
        rate = float(optimizer.learning_rate)
        for group, follows in zip(made.groups, self._follows, strict=True):
            if follows:
                group.values["lr"] = rate
        made.iteration = int(optimizer.iterations)
        given: list[Any] = [None] * len(made.leaves)
        for gradient, variable in zip(grads, variables, strict=True):
            given[self._index(variable)] = self._checked(gradient, variable)
        dtypes = tuple(None if g is None else DTYPE_NAMES[g.dtype] for g in given)
        held = [g for g in given if g is not None]
        self._grads = np.zeros(len(given), dtype=np.int64)
        self._grads[[g is not None for g in given]] = addresses(held)
        self.measured = made.step(dtypes, self._bind)
        increment_version(self._tensors)

    def _bind(self, runner: Runner) -> None:
        assert isinstance(runner, NativeRunner)
        runner.refresh("grad", self._grads[runner.cohort.members])

    def _checked(self, gradient: Any, variable: Any) -> torch.Tensor:
        tensor = variable._value
        usual = isinstance(gradient, torch.Tensor) and gradient.layout is torch.strided
        if not usual or gradient.shape != tensor.shape:
            gradient = dense(gradient, variable)
        if gradient.dtype not in DTYPE_NAMES:
            gradient = gradient.to(tensor.dtype)
        return gradient if gradient.is_contiguous() else gradient.contiguous()

    def _fresh(self) -> Stepper:
        """The stepper, made again if a variable lies elsewhere than before."""
        if self._native is None or not np.array_equal(addresses(self._tensors), self._where):
            self._tensors = []
            optimizer = self._optimizer
            made: Stepper = optimizer.stepper("native", self._view, self._allocate)
            self._follows = [g.values["lr"] is None for g in made.groups]
            self._native, self._where = made, addresses(self._tensors)
        return self._native

    def _view(self, variable: Any) -> np.ndarray[Any, Any]:
        self._tensors.append(variable.value)
        return numpy_view(variable.value)

    def _allocate(self, leaf: Leaf, name: str, per: Any, dtype: Any, initial: Any) -> Any:
        tensor = self._variable(leaf, name).value
        self._tensors.append(tensor)
        return numpy_view(tensor).reshape(-1)
