"""Where torch keeps what an optimizer remembers: `optimizer.state`, in torch.optim's own layout."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from isostep.engines.leaf import Leaf
from isostep.errors import StateError
from isostep.rules.base import Domain, Rule
from isostep.torch.tensors import TORCH_DTYPES, Held, new_tensor, numpy_view

MASTER = "master_weights"
EXTRA_SLOTS = {"average": "average", "master": MASTER}
"""What isostep keeps beside torch's slots, under these keys."""


class StateTensors:
    """An `Allocate` that keeps its arrays in `optimizer.state`, and finds them there again.

    Args:
        state: `optimizer.state`.
        slots: torch's names of the rule's slots.
        params: the parameters by leaf name.
        engine: `"native"` gets NumPy views of the tensors, `"array"` the tensors.
    """

    def __init__(
        self, state: Any, slots: Mapping[str, str], params: Mapping[str, torch.Tensor], engine: str
    ) -> None:
        self._state, self._slots = state, {**slots, **EXTRA_SLOTS}
        self._params, self._engine = params, engine
        self._ours: list[tuple[torch.Tensor, str, torch.Tensor]] = []
        self._edits = Edits()
        self._seen: list[Any] = []

    def __call__(
        self, leaf: Leaf, name: str, per: Domain, dtype: np.dtype[Any], initial: Any, /
    ) -> Any:
        param = self._params[leaf.name]
        kept = self._state[param]
        key = self._slots.get(name, name)
        shape, order = _shape(leaf, param, per), _order(leaf, param)
        tensor = kept.get(key)
        if not isinstance(tensor, torch.Tensor) or (tensor.is_meta and not param.is_meta):
            number = isinstance(initial, float | int)
            fill = float(initial) if number else 0.0
            tensor = new_tensor(shape, order, TORCH_DTYPES[dtype.name], param, fill)
            if not number:  # a master or an average
                tensor.copy_(param.detach())
        if tuple(tensor.shape) != shape:
            raise StateError(
                f"the state {key!r} of parameter {leaf.name!r} has shape {tuple(tensor.shape)}, "
                f"and the parameter needs {shape}: the state is another model's"
            )
        kept[key] = tensor = _placed(param, tensor, order)
        self.own(param, key, tensor)
        if self._engine == "array":
            return Held(tensor.permute(leaf.order[: param.ndim]))
        return numpy_view(tensor).transpose(leaf.order).reshape(-1)

    def own(self, param: torch.Tensor, key: str, tensor: torch.Tensor) -> None:
        """Count on `tensor` being in the state of `param`."""
        self._ours.append((param, key, tensor))

    def watch(self) -> None:
        """Notice from now on what is done to the state."""
        for param in {p for p, _, _ in self._ours}:
            kept = self._state[param]
            if not isinstance(kept, WatchedState):
                self._state[param] = kept = WatchedState(kept)
            kept.edits = self._edits
        self._seen = [*self._state.values(), None]  # an end, which no state is
        self._edits.any = False

    def replaced(self) -> bool:
        """Whether someone has put another tensor in the place of one of these."""
        now = chain(self._state.values(), (None,))
        if not self._edits.any and all(map(operator.is_, self._seen, now)):
            return False
        if any(self._state.get(p, {}).get(key) is not tensor for p, key, tensor in self._ours):
            return True
        self.watch()  # something of the user's own was added
        return False


class Edits:
    """Whether a dict that reports here has been edited."""

    any = False


class WatchedState(dict[str, Any]):
    """The state of one parameter: a dict that says when it is edited, so that not every step has
    to look through all of them. It is saved and copied as a plain dict."""

    __slots__ = ("edits",)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (dict(self),)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self._edited()

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self._edited()

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self

    def update(self, *given: Any, **named: Any) -> None:
        super().update(*given, **named)
        self._edited()

    def setdefault(self, key: str, default: Any = None) -> Any:
        self._edited()
        return super().setdefault(key, default)

    def pop(self, *given: Any) -> Any:
        self._edited()
        return super().pop(*given)

    def popitem(self) -> Any:
        self._edited()
        return super().popitem()

    def clear(self) -> None:
        super().clear()
        self._edited()

    def _edited(self) -> None:
        edits = getattr(self, "edits", None)
        if edits is not None:
            edits.any = True


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


class StepCounts:
    """The `step` tensors of all parameters, kept in few blocks so that counting costs no loop.

    Args:
        state: `optimizer.state`.
        keeps_step: whether torch's class keeps a `step` for each parameter.
        slots: torch's names of the rule's slots.
        own: is told of each tensor that goes into the state.
    """

    def __init__(
        self,
        state: Any,
        keeps_step: bool,
        slots: Mapping[str, str],
        own: Callable[[torch.Tensor, str, torch.Tensor], None],
    ) -> None:
        self._state, self._keeps_step, self._own = state, keeps_step, own
        self._slots = tuple(slots.values())
        self._blocks: list[tuple[torch.Tensor, np.ndarray[Any, Any], slice, int]] = []
        self._length = 0

    def read(self, param: torch.Tensor) -> int:
        """How many steps the state says that a parameter has had.

        Where torch counts none, what matters is whether there was a step at all, and the slots
        show that.
        """
        kept = self._state.get(param, {})
        if self._keeps_step:
            step = kept.get("step", 0)
            return 0 if isinstance(step, torch.Tensor) and step.is_meta else int(step)
        return int(any(isinstance(kept.get(key), torch.Tensor) for key in self._slots))

    def add(self, params: Sequence[torch.Tensor], steps: Sequence[int]) -> None:
        """Count for the next leaves of the stepper, in its order."""
        here = slice(self._length, self._length + len(params))
        self._length = here.stop
        if self._keeps_step:
            wide = torch.get_default_dtype() == torch.float64  # as torch.optim has it
            block = torch.tensor(steps, dtype=torch.float64 if wide else torch.float32)
            for k, param in enumerate(params):
                self._state[param]["step"] = own = block[k]
                self._own(param, "step", own)
            self._blocks.append((block, block.numpy(), here, block._version))

    def write(self, steps: np.ndarray[Any, Any]) -> None:
        """Bring the tensors up to date."""
        for _, view, here, _ in self._blocks:
            view[...] = steps[here]  # which autograd does not count as an edit

    def edited(self) -> bool:
        """Whether someone has written to a `step`."""
        return any(block._version != version for block, _, _, version in self._blocks)


def unkept(
    leaf: Leaf, name: str, per: Domain, dtype: np.dtype[Any], initial: Any, /
) -> np.ndarray[Any, Any]:
    """An `Allocate` for plans: the right size, and no memory."""
    count = math.prod(leaf.slot_shape(per))
    return np.broadcast_to(np.zeros((), dtype), count)
