"""The gradients of one step: where they lie, in the order of memory that the kernels expect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from isostep.errors import GradientError
from isostep.stepper import Engine, Stepper
from isostep.torch.addresses import addresses
from isostep.torch.lazy import densified
from isostep.torch.tensors import DTYPE_NAMES, numpy_view
from isostep.tracing import works_by_element

try:  # what guards compiled graphs; not public, so it may go
    from torch._C._dynamo.guards import TensorGuards  # pyright: ignore
except ImportError:
    TensorGuards = None

_MANY = 8
_numel = torch.Tensor.numel
_is_contiguous = torch.Tensor.is_contiguous


class Gradients:
    """Collects gradients, which torch allocates anew in each step.

    In the usual step every gradient is there and lies as its parameter does; that is checked in
    few calls for all of them. Any other step looks at them one by one.

    Args:
        stepper: whose leaves they belong to.
        engine: `"native"` takes addresses, `"array"` tensors.
        rule: the rule's name, for errors.
    """

    def __init__(self, stepper: Stepper, engine: Engine, rule: str) -> None:
        self._stepper, self._engine, self._rule = stepper, engine, rule
        self.tensors: list[Any] = []
        """One for each leaf: a tensor, a NumPy array that is a copy of one, or None."""
        self.addresses = np.zeros(0, dtype=np.int64)
        self._strides: list[tuple[int, ...]] = []
        self._sizes: list[int] = []
        self._otherwise: list[int] = []
        self._usual = False
        self._guard: Any = None
        self._dtypes: list[Any] = []
        self._dtype_names: tuple[str | None, ...] = ()

    def laid_out(self, params: list[torch.Tensor]) -> None:
        """Expect gradients for these parameters, the leaves of the stepper."""
        self._guard = None
        self._strides = [p.stride() for p in params]
        self._sizes = list(map(_numel, params))
        contiguous = [p.is_contiguous() for p in params]
        self._otherwise = [k for k, yes in enumerate(contiguous) if not yes]
        # The memory of a complex gradient may hold its conjugate.
        plain = not any(leaf.staged for leaf in self._stepper.leaves)
        self._usual = plain and not any(p.is_complex() for p in params)

    def collect(
        self, grads: list[Any], weight_decay: Callable[[int], Any]
    ) -> tuple[str | None, ...]:
        """Keep the gradients of this step, and return their dtypes.

        Args:
            grads: one for each leaf, None where there is none.
            weight_decay: of a leaf, by its index.

        Raises:
            GradientError: a gradient has another shape than its parameter, or an unknown dtype.
            RuntimeError: a sparse gradient that the rule does not take.
        """
        native = self._engine == "native"
        if self._guard is not None and self._guard.check(*grads):
            self.tensors = grads
            if native:
                self.addresses = addresses(grads)
            return self._dtype_names
        self._guard = None
        if self._usual and self._as_parameters(grads):
            self.tensors = grads
            self._guard = guard_of(grads)
            if native:
                self.addresses = addresses(grads)
        else:
            self.tensors = [
                None if g is None else self._dense(k, g, weight_decay) for k, g in enumerate(grads)
            ]
            if native:
                self.addresses = np.array([_address(g) for g in self.tensors], dtype=np.int64)
        try:
            dtypes = [g.dtype for g in self.tensors]
        except AttributeError:
            dtypes = [None if g is None else g.dtype for g in self.tensors]
        if dtypes != self._dtypes:
            self._dtype_names = tuple(self._dtype_name(k, d) for k, d in enumerate(dtypes))
            self._dtypes = dtypes
        return self._dtype_names

    def release(self) -> None:
        """Hold no gradient after the step."""
        self.tensors = []

    def _as_parameters(self, grads: list[Any]) -> bool:
        """Whether all gradients are there, and each lies as its parameter does."""
        try:
            alike = list(map(_is_contiguous, grads))
            for k in self._otherwise:
                alike[k] = grads[k].stride() == self._strides[k]
            return all(alike) and list(map(_numel, grads)) == self._sizes
        except (TypeError, RuntimeError):  # a None, or a sparse one
            return False

    def _dense(self, k: int, g: torch.Tensor, weight_decay: Callable[[int], Any]) -> Any:
        """The gradient in its parameter's order of memory; a NumPy array if that is a copy."""
        leaf = self._stepper.leaves[k]
        if g.layout is not torch.strided:
            by_element = works_by_element(self._stepper.recipe(leaf))
            g = densified(g, self._rule, weight_decay(k), by_element)
        g = g.detach() if self._engine == "native" else g
        g = g.resolve_conj().resolve_neg()
        if g.numel() != self._sizes[k]:
            shape = leaf.array.shape[: g.ndim] if g.is_complex() else leaf.array.shape
            raise GradientError(
                f"the gradient of parameter {leaf.name!r} has shape {tuple(g.shape)}, and the "
                f"optimizer knows the parameter with {shape}: if it was replaced by another of a "
                f"new shape, make a new optimizer for it"
            )
        if self._engine == "array":
            return g if leaf.in_order else g.permute(leaf.order)
        if g.stride() == self._strides[k] and not leaf.staged:
            return g
        return leaf.dense(numpy_view(g))

    def _dtype_name(self, k: int, dtype: Any) -> str | None:
        if dtype is None:
            return None
        if isinstance(dtype, np.dtype):
            return dtype.name
        if dtype not in DTYPE_NAMES:
            name = self._stepper.leaves[k].name
            raise GradientError(
                f"the gradient of parameter {name!r} is {dtype}: that has no kernel"
            )
        return DTYPE_NAMES[dtype]


def guard_of(tensors: list[Any]) -> Any:
    """Something whose `check(*tensors)` tells in one call whether all have the kinds, dtypes,
    devices, sizes and strides of these; None if this torch has no such thing, or for few."""
    if TensorGuards is None or len(tensors) < _MANY:
        return None
    try:
        return TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
    except (TypeError, SystemError):
        return None


def _address(g: Any) -> int:
    if g is None:
        return 0
    return g.data_ptr() if isinstance(g, torch.Tensor) else g.ctypes.data
