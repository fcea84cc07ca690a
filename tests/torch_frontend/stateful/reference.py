"""torch's own class in float64: the numbers that a step of any dtype is held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .world import dense, readable

WIDE = {torch.complex64: torch.complex128, torch.complex128: torch.complex128}
TO_BE_OFF = ("foreach", "fused", "differentiable", "capturable")


class Reference:
    """What a step of an optimizer of torch would give in float64.

    Args:
        optimizer: before its step.
        kind: its class in torch.optim.
        before: what is done to the gradients first; False if there is no step.
    """

    def __init__(self, optimizer: Any, kind: type[Any], before: Callable[[Any], bool]) -> None:
        self._memory: dict[Any, Tensor] = {}
        self.params: dict[Any, Tensor] = {}
        groups: list[dict[str, Any]] = []
        for group in optimizer.param_groups:
            off: dict[str, Any] = {key: False for key in TO_BE_OFF if key in group}
            # torch computes the coefficients of a tensor in its dtype, isostep from its value.
            off |= {k: float(v) for k, v in group.items() if isinstance(v, Tensor)}
            groups.append({**group, **off, "params": [self._param(p) for p in group["params"]]})
        self._optimizer = kind([torch.zeros(1)])
        self._optimizer.defaults = optimizer.defaults
        self._optimizer.param_groups[:] = groups
        self._optimizer.state.clear()
        for p, held in optimizer.state.items():
            if held and p in self.params:
                self._optimizer.state[self.params[p]] = {k: self._kept(k, held[k]) for k in held}
        if before(self._optimizer):
            self._optimizer.step()

    def slots(self, p: Any) -> dict[str, Any]:
        """The state of a parameter after the step."""
        return self._optimizer.state.get(self.params.get(p), {})

    def _param(self, p: Any) -> Tensor:
        if p not in self.params:
            wide = self.params[p] = self._wide(p)
            if p.grad is not None:
                wide.grad = dense(p.grad).to(wide.dtype, copy=True)
        return self.params[p]

    def _kept(self, key: str, value: Any) -> Any:
        if key == "step" or not isinstance(value, Tensor):
            return value.clone() if isinstance(value, Tensor) else value
        return dense(value).to(WIDE.get(value.dtype, torch.float64), copy=True)

    def _wide(self, tensor: Tensor) -> Tensor:
        """A copy; tensors that share memory go on sharing it."""
        tensor = tensor.detach()
        dtype = WIDE.get(tensor.dtype, torch.float64)
        if tensor.layout is not torch.strided or not readable(tensor):
            raise ValueError("it has no memory")
        storage = tensor.untyped_storage()
        key = (storage.data_ptr(), tensor.dtype) if tensor.numel() else id(tensor)
        if key not in self._memory:
            self._memory[key] = (
                torch.empty(0, dtype=tensor.dtype).set_(storage).to(dtype, copy=True)
            )
        return self._memory[key].as_strided(
            tensor.size(), tensor.stride(), tensor.storage_offset() if tensor.numel() else 0
        )
