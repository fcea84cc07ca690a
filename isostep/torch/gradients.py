"""The gradients of one step: where they lie, in the order of memory that the kernels expect."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from isostep.engines.leaf import Leaf
from isostep.errors import GradientError
from isostep.stepper import Stepper
from isostep.torch.arrivals import Arrivals
from isostep.torch.lazy import densified
from isostep.torch.overlap import Stretches
from isostep.torch.own_step import odd
from isostep.torch.tensors import DTYPE_NAMES, missing_bytes, numpy_view, oddity
from isostep.tracing import works_by_element


class Gradients:
    """Collects gradients, which torch allocates anew in each step.

    Most lie as their parameters do; those are found in one call, whichever are there. The others
    are looked at one by one.

    Args:
        stepper: whose leaves they belong to.
        params: the parameters, one for each leaf.
        written: the memory that a step writes to.
        rule: the rule's name, for errors.
        before: what collected those of the first of the parameters so far.
    """

    def __init__(
        self,
        stepper: Stepper,
        params: list[torch.Tensor],
        written: Stretches,
        rule: str,
        before: Gradients | None = None,
    ) -> None:
        self._stepper, self._params, self._rule = stepper, params, rule
        self._written = written
        self.tensors: list[Any] = []
        """One for each leaf: a tensor, a NumPy array that is a copy of one, or None."""
        self.addresses: NDArray[np.int64] = np.zeros(len(params), dtype=np.int64)
        usual = [not leaf.staged and not p.is_complex() for leaf, p in self._pairs()]
        looked = None if before is None else before._arrivals
        native = self._stepper.engine == "native"
        self._arrivals = Arrivals(params, usual, written, looked) if native else None
        self._dtypes = [p.dtype for p in params]
        self._names = tuple(DTYPE_NAMES[dtype] for dtype in self._dtypes)

    def _pairs(self) -> Any:
        return zip(self._stepper.leaves, self._params, strict=True)

    def collect(
        self, grads: list[Any], weight_decay: Callable[[int], Any]
    ) -> tuple[str | None, ...]:
        """Keep the gradients of this step, and return their dtypes.

        Args:
            grads: one for each leaf, None where there is none.
            weight_decay: of a leaf, by its index.

        Raises:
            NotOurs: a gradient is a tensor that kernels do not know.
            GradientError: a gradient has another shape than its parameter, or an unknown dtype.
            RuntimeError: a sparse gradient that the rule does not take.
        """
        self.tensors = grads
        unusual = range(len(grads))
        if self._arrivals is not None:
            self.addresses, unusual = self._arrivals.look(grads)
        if not len(unusual) and self._arrivals is not None and self._arrivals.all_there:
            return self._names
        names: list[str | None] = [
            None if g is None else name for g, name in zip(grads, self._names, strict=True)
        ]
        if len(unusual):
            self.tensors = list(grads)
            for k in unusual:
                names[k] = self._one(k, grads[k], weight_decay)
        return tuple(names)

    def release(self) -> None:
        """Hold no gradient after the step."""
        self.tensors = []

    def _one(self, k: int, g: Any, weight_decay: Callable[[int], Any]) -> str | None:
        """Take in a gradient that needs a closer look; returns its dtype."""
        if g is None:
            return None
        leaf = self._stepper.leaves[k]
        g = self._plain(leaf, g, lambda: weight_decay(k))
        self._check(leaf, g, self._params[k])
        if self._stepper.engine == "array":
            self.tensors[k] = g if leaf.in_order else g.permute(leaf.order)
        elif g.stride() == self._params[k].stride() and not leaf.staged:
            self.tensors[k], self.addresses[k] = g, g.data_ptr()
        else:
            dense = leaf.dense(numpy_view(g))
            self.tensors[k], self.addresses[k] = (g, dense), dense.ctypes.data
        return DTYPE_NAMES[g.dtype]

    def _plain(self, leaf: Leaf, g: torch.Tensor, weight_decay: Callable[[], Any]) -> torch.Tensor:
        """The gradient as a tensor that is memory and no more."""
        g = _arrived(g)
        shown = g.is_conj() or g.is_neg() or g._is_zerotensor()
        why = "" if shown or g.is_inference() else oddity(g)  # of those the values will do
        if why:
            raise odd(f"the gradient of parameter {leaf.name!r}", why)
        if g.layout is not torch.strided:
            by_element = works_by_element(self._stepper.recipe(leaf))
            g = densified(g, self._rule, weight_decay(), by_element)
        if self._stepper.engine == "native":
            g = g.detach()
        if shown:
            g = g.clone() if g._is_zerotensor() else g.resolve_conj().resolve_neg()
        if self._written.meet(g):
            raise odd(f"the gradient of parameter {leaf.name!r}", "memory that the step writes to")
        return g

    def _check(self, leaf: Leaf, g: torch.Tensor, param: torch.Tensor) -> None:
        if g.shape != param.shape:
            raise GradientError(
                f"the gradient of parameter {leaf.name!r} has shape {tuple(g.shape)}, and the "
                f"parameter {tuple(param.shape)}: set p.grad = None after a change of shape"
            )
        if g.dtype not in DTYPE_NAMES or g.is_complex() != param.is_complex():
            raise GradientError(
                f"the gradient of parameter {leaf.name!r} is {g.dtype}: that has no kernel for a "
                f"parameter of {param.dtype}"
            )
        if g.device != param.device:
            raise GradientError(
                f"the gradient of parameter {leaf.name!r} is on {g.device}, and the parameter on "
                f"{param.device}: set p.grad = None after a move"
            )
        missing = missing_bytes(g)
        if missing:
            raise GradientError(
                f"the storage of the gradient of parameter {leaf.name!r} {missing}: set p.grad = "
                f"None where it was freed"
            )


def _arrived(g: torch.Tensor) -> torch.Tensor:
    """What a functional collective gives, once it is there; any other tensor as it is."""
    module = sys.modules.get("torch.distributed._functional_collectives")
    waits = module is not None and isinstance(g, module.AsyncCollectiveTensor)
    return g.trigger_wait() if waits else g  # pyright: ignore[reportAttributeAccessIssue]
