"""Where torch keeps what an optimizer remembers: `optimizer.state`, in torch.optim's own layout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from isostep.engines.leaf import Leaf
from isostep.errors import StateError
from isostep.rules.base import Domain, Rule
from isostep.torch.options import Extras
from isostep.torch.own_step import odd
from isostep.torch.tensors import (
    DTYPE_NAMES,
    TORCH_DTYPES,
    Held,
    missing_bytes,
    new_tensor,
    numpy_view,
    oddity,
)

MASTER = "master_weights"
EXTRA_SLOTS = {"average": "average", "master": MASTER}
"""What isostep keeps beside torch's slots, under these keys."""


class StateTensors:
    """An `Allocate` that finds its arrays in `optimizer.state`, or makes them for it.

    Nothing is written to the state before `commit`.

    Args:
        state: `optimizer.state`.
        slots: torch's names of the rule's slots.
        engine: `"native"` gets NumPy views of the tensors, `"array"` the tensors.
    """

    def __init__(self, state: Any, slots: Mapping[str, str], engine: str) -> None:
        self._state, self._slots, self._engine = state, {**slots, **EXTRA_SLOTS}, engine
        self.params: dict[str, torch.Tensor] = {}
        """The parameters by leaf name; one must be here before its slots are asked for."""
        self.fresh: dict[torch.Tensor, dict[str, torch.Tensor]] = {}
        """What the state does not have yet, by parameter and key."""
        self.found: dict[tuple[str, str], torch.Tensor] = {}
        """Every tensor that a step will write to, by parameter and key."""

    def __call__(
        self, leaf: Leaf, name: str, per: Domain, dtype: np.dtype[Any], initial: Any, /
    ) -> Any:
        param = self.params[leaf.name]
        key = self._slots.get(name, name)
        shape, order = _shape(leaf, param, per), _order(leaf, param)
        tensor = kept_of(self._state, param).get(key)
        if not isinstance(tensor, torch.Tensor) or (tensor.is_meta and not param.is_meta):
            number = isinstance(initial, float | int)
            fill = float(initial) if number else 0.0
            tensor = new_tensor(shape, order, TORCH_DTYPES[dtype.name], param, fill)
            if not number:  # a master or an average
                tensor.copy_(param.detach())
        check_slot(tensor, key, leaf.name, param)
        if tuple(tensor.shape) != shape:
            raise StateError(
                f"the state {key!r} of parameter {leaf.name!r} has shape {tuple(tensor.shape)}, "
                f"and the parameter needs {shape}: load the state of this model, or delete it by "
                f"optimizer.state.pop(p) after a change of shape"
            )
        tensor = _placed(param, tensor, order)
        self.put(leaf.name, param, key, tensor)
        if self._engine == "array":
            return Held(tensor.permute(leaf.order[: param.ndim]))
        return numpy_view(tensor).transpose(leaf.order).reshape(-1)

    def put(self, name: str, param: torch.Tensor, key: str, tensor: torch.Tensor) -> None:
        """Have a tensor stand in the state of the parameter `name`, once all is ready."""
        self.found[name, key] = tensor
        if kept_of(self._state, param).get(key) is not tensor:
            self.fresh.setdefault(param, {})[key] = tensor

    def commit(self) -> None:
        """Write to the state what is not there; done twice, it does nothing more."""
        new: dict[torch.Tensor, dict[str, torch.Tensor]] = {}
        for param, fresh in self.fresh.items():
            kept = self._state.get(param)
            if kept is None:
                new[param] = dict(fresh)
            else:
                kept.update(fresh)
        self._state.update(new)
        self.fresh = {}


def kept_of(state: Any, param: torch.Tensor) -> Mapping[str, Any]:
    """The state of a parameter, without making one."""
    kept = state.get(param)
    return {} if kept is None else kept


def check_slot(tensor: torch.Tensor, key: str, name: str, param: torch.Tensor) -> None:
    """Refuse a slot that kernels cannot work on.

    Raises:
        NotOurs: torch's operations can.
        StateError: its memory has been freed.
    """
    if tensor.layout is not torch.strided:
        return  # it is made dense
    what = f"the state {key!r} of parameter {name!r}"
    why = oddity(tensor)
    if not why and (tensor.dtype not in DTYPE_NAMES or tensor.is_complex() != param.is_complex()):
        why = f"a tensor of {tensor.dtype}"
    if why:
        raise odd(what, why)
    missing = missing_bytes(tensor)
    if missing:
        raise StateError(f"the storage of {what} {missing}: load the state anew")


def _shape(leaf: Leaf, param: torch.Tensor, per: Domain) -> tuple[int, ...]:
    """The shape of a slot: factors keep the axis that they are reduced over, with length 1."""
    shape = list(param.shape)
    if per != "element":
        assert leaf.factored_axes is not None
        row, column = leaf.factored_axes
        shape[column if per == "row" else row] = 1
    return tuple(shape)


def _order(leaf: Leaf, param: torch.Tensor) -> tuple[int, ...]:
    """The axes of a parameter, and of its slots, in their order in memory."""
    if leaf.factored_axes is not None:
        return leaf.order
    return _by_strides(param)  # a stand-in for a tensor elsewhere has no strides


def _by_strides(tensor: torch.Tensor) -> tuple[int, ...]:
    if tensor.is_contiguous():
        return tuple(range(tensor.ndim))
    strides = tensor.stride()
    return tuple(sorted(range(tensor.ndim), key=lambda axis: -strides[axis]))


def _placed(param: torch.Tensor, tensor: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """The tensor dense, on the parameter's device and in its order of memory: the model may have
    moved since it was made, or it may have been saved from another."""
    if tensor.layout is not torch.strided:  # torch's SGD makes sparse buffers of sparse gradients
        tensor = tensor.to_dense()
    if tensor.device == param.device and tensor.permute(tuple(order)).is_contiguous():
        return tensor
    fresh = new_tensor(tensor.shape, order, tensor.dtype, param, 0.0)
    return fresh.copy_(tensor)


def recast(
    state: Any,
    rule: Rule,
    slots: Mapping[str, str],
    dtypes: Mapping[str, str],
    values: Mapping[str, Any],
) -> None:
    """Make slots that torch's constructor has allocated anew, in the dtypes asked for.

    Args:
        state: `optimizer.state`.
        rule: whose slots they are.
        slots: torch's names of them.
        dtypes: of each slot; float32 where none is given.
        values: the hyperparameters, of which one may be the initial value.
    """
    for slot in rule.slots:
        fill = values[slot.initial] if isinstance(slot.initial, str) else slot.initial
        for param, kept in state.items():
            old = kept.get(slots[slot.name])
            if old is not None and dtypes.get(slot.name) != "param":
                wide = "float64" if param.dtype == torch.float64 else "float32"
                dtype = TORCH_DTYPES[dtypes.get(slot.name, wide)]
                order = _by_strides(old)
                kept[slots[slot.name]] = new_tensor(old.shape, order, dtype, param, fill)


class Wanted:
    """The dtypes that slots have after loading.

    Args:
        rule: whose slots they are.
        slots: torch's names of them.
        extras: what the user asked for.
    """

    def __init__(self, rule: Rule, slots: Mapping[str, str], extras: Extras) -> None:
        asked = extras.slot_dtypes(slots)
        per = {slot.name: slot.per for slot in rule.slots}
        # None: as saved. "": that of the arithmetic, which factors have if not asked otherwise.
        self._dtypes = {
            key: None
            if asked.get(slot) == "param"
            else asked.get(slot, "")
            if per[slot] == "element"
            else ""
            for slot, key in slots.items()
        }

    def restore(self, param: torch.Tensor, kept: Any, saved: Any) -> None:
        """Undo what torch's loading did to the dtypes of slots.

        Args:
            param: the parameter.
            kept: its state as torch has loaded it, cast to the parameter's dtype; None for none.
            saved: the state as it was saved, or None.
        """
        if kept is None or saved is None:
            return
        for key, value in saved.items():
            now = kept.get(key)
            if not isinstance(now, torch.Tensor):
                continue
            if key == "step":
                if now.is_meta and not isinstance(value, torch.Tensor):
                    # torch makes a tensor of a number on the default device
                    kept[key] = torch.tensor(float(value), dtype=now.dtype, device="cpu")
            elif isinstance(value, torch.Tensor):
                dtype = self._dtype(key, value, param)
                if now.dtype != dtype:
                    kept[key] = value.detach().to(now.device, dtype, copy=True)

    def _dtype(self, key: str, saved: torch.Tensor, param: torch.Tensor) -> torch.dtype:
        asked = self._dtypes.get(key)
        if asked is None or not saved.is_floating_point():
            return saved.dtype
        wide = "float64" if param.dtype == torch.float64 else "float32"
        return TORCH_DTYPES[asked or wide]


def unkept(
    leaf: Leaf, name: str, per: Domain, dtype: np.dtype[Any], initial: Any, /
) -> np.ndarray[Any, Any]:
    """An `Allocate` for plans: the right size, and no memory."""
    count = math.prod(leaf.slot_shape(per))
    return np.broadcast_to(np.zeros((), dtype), count)
