"""Where torch keeps what an optimizer remembers: `optimizer.state`, in torch.optim's own layout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from isostep.dialects.base import Spelling
from isostep.engines.leaf import Leaf
from isostep.errors import StateError
from isostep.rules.base import Domain
from isostep.torch.tensors import TORCH_DTYPES, like, numpy_view

EXTRA_SLOTS = {"average": "average", "master": "master_weights"}
"""What isostep keeps beside torch's slots, under these keys."""


class StateTensors:
    """An `Allocate` that keeps its arrays in `optimizer.state`, and finds them there again.

    Args:
        state: `optimizer.state`.
        spelling: torch's names.
        params: the parameters by leaf name.
        engine: `"native"` gets NumPy views of the tensors, `"array"` the tensors.
    """

    def __init__(
        self, state: Any, spelling: Spelling, params: Mapping[str, torch.Tensor], engine: str
    ) -> None:
        self._state, self._spelling = state, spelling
        self._params, self._engine = params, engine

    def __call__(
        self, leaf: Leaf, name: str, per: Domain, dtype: np.dtype[Any], initial: Any, /
    ) -> Any:
        param = self._params[leaf.name]
        kept = self._state[param]
        key = EXTRA_SLOTS.get(name) or self._spelling.slots[name]
        tensor = kept.get(key)
        if not isinstance(tensor, torch.Tensor):
            tensor = _new(param, per, TORCH_DTYPES[dtype.name], initial)
        if tuple(tensor.shape) != _shape(param, per):
            raise StateError(
                f"the state {key!r} of parameter {leaf.name!r} has shape {tuple(tensor.shape)}, "
                f"and the parameter needs {_shape(param, per)}"
            )
        kept[key] = _placed(param, tensor, per)
        return kept[key] if self._engine == "array" else _flat(leaf, kept[key], per)


def _new(param: torch.Tensor, per: Domain, dtype: torch.dtype, initial: Any) -> torch.Tensor:
    if per != "element":
        return torch.full(_shape(param, per), initial, dtype=dtype, device=param.device)
    if isinstance(initial, float | int):
        return like(param, dtype, float(initial))
    return like(param, dtype, 0.0).copy_(param.detach())  # a master or an average


def _shape(param: torch.Tensor, per: Domain) -> tuple[int, ...]:
    """The shape of a slot: factors keep the axis that they are reduced over, with length 1."""
    shape = list(param.shape)
    if per != "element":
        shape[-1 if per == "row" else -2] = 1
    return tuple(shape)


def _placed(param: torch.Tensor, tensor: torch.Tensor, per: Domain) -> torch.Tensor:
    """The tensor on the parameter's device, in its order of memory: the model may have moved since
    it was made, or it may have been saved from another."""
    if per != "element":
        return tensor.to(param.device).contiguous()
    wanted = like(param, tensor.dtype, 0.0)
    if tensor.device == wanted.device and tensor.stride() == wanted.stride():
        return tensor
    return wanted.copy_(tensor)


def _flat(leaf: Leaf, tensor: torch.Tensor, per: Domain) -> Any:
    view = numpy_view(tensor)
    return leaf.dense(view) if per == "element" else view.reshape(-1)


class StepCounts:
    """The `step` tensors of all parameters, kept in few blocks so that counting costs no loop.

    Args:
        state: `optimizer.state`.
        keeps_step: whether torch's class keeps a `step` for each parameter.
    """

    def __init__(self, state: Any, keeps_step: bool) -> None:
        self._state, self._keeps_step = state, keeps_step
        self._blocks: list[tuple[torch.Tensor, slice]] = []
        self._length = 0

    def read(self, param: torch.Tensor) -> int:
        """How many steps the state says that a parameter has had."""
        kept = self._state.get(param, {})
        if "step" in kept:
            return int(kept["step"])
        return int(any(isinstance(v, torch.Tensor) for v in kept.values()))

    def add(self, params: Sequence[torch.Tensor], steps: Sequence[int]) -> None:
        """Count for the next leaves of the stepper, in its order."""
        here = slice(self._length, self._length + len(params))
        self._length = here.stop
        if self._keeps_step:
            wide = torch.get_default_dtype() == torch.float64  # as torch.optim has it
            block = torch.tensor(steps, dtype=torch.float64 if wide else torch.float32)
            for k, param in enumerate(params):
                self._state[param]["step"] = block[k]
            self._blocks.append((block, here))

    def write(self, steps: np.ndarray[Any, Any]) -> None:
        """Bring the tensors up to date."""
        for block, here in self._blocks:
            block.numpy()[...] = steps[here]


def unkept(
    leaf: Leaf, name: str, per: Domain, dtype: np.dtype[Any], initial: Any, /
) -> np.ndarray[Any, Any]:
    """An `Allocate` for plans: the right size, and no memory."""
    count = math.prod(leaf.slot_shape(per))
    return np.broadcast_to(np.zeros((), dtype), count)
