"""Where Paddle keeps what an optimizer remembers: its accumulators, under Paddle's names.

Paddle's own classes make them, so their names, shapes and dtypes are those of a `.pdopt` file.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle.utils import unique_name

from isostep.engines.leaf import Leaf
from isostep.errors import StateError
from isostep.paddle.hyper import attribute, held_as, of_rule, plain
from isostep.paddle.tensors import dtype_name, has_memory, numpy_view, on_cpu
from isostep.rules.base import Domain


def called(optimizer: Any, accumulator: str) -> str:
    """The name of an accumulator in an optimizer that may have a name itself."""
    return accumulator if optimizer._name is None else f"{optimizer._name}_{accumulator}"


def create(optimizer: Any, params: Sequence[Any], owners: Sequence[int]) -> None:
    """Have Paddle make the accumulators of some parameters, as far as they are not there.

    What an exception has cut short is completed by the next call.

    Args:
        optimizer: whose they are.
        params: the parameters.
        owners: the parameter group of each.
    """
    for group in sorted(set(owners)):
        members = [p for p, owner in zip(params, owners, strict=True) if owner == group]
        _create(optimizer, members, optimizer._param_groups[group] if optimizer.grouped else {})


def _create(optimizer: Any, params: Sequence[Any], group: Mapping[str, Any]) -> None:
    settings = [a for a in {**optimizer._default_dict, **group} if held_as(optimizer, a)]
    # As numbers: where there is a tensor Paddle has powers begin at a default of its own.
    named = {
        a: plain(a, group.get(a, getattr(optimizer, attribute(optimizer, a))))
        for a in of_rule(optimizer.spelling)
        if a in settings
    }
    block = paddle.static.default_main_program().global_block()
    # Paddle leaves in the optimizer what it takes from a group.
    _twin(optimizer)._create_accumulators(block, {**group, **named, "params": list(params)})


def _twin(optimizer: Any, **attributes: Any) -> Any:
    """A copy of an optimizer that shares all but these attributes with it."""
    made: Any = object.__new__(type(optimizer))
    vars(made).update({**vars(optimizer), **attributes})
    return made


def master(optimizer: Any, param: Any) -> Any:
    """The float32 copy that is stepped in the place of a parameter; None if there is none."""
    low = optimizer._is_dtype_fp16_or_bf16(param.dtype)
    return optimizer._master_weights.get(param.name) if optimizer._multi_precision and low else None


def average(optimizer: Any, param: Any) -> Any:
    """The moving average of a parameter; if it is not there it begins as the parameter."""
    wide = "float64" if param.dtype == paddle.float64 else "float32"
    name = called(optimizer, "average")
    if param.name not in optimizer._accumulators.get(name, ()):
        if paddle.in_dynamic_mode():
            tensor = param.detach().astype(wide).clone()
            tensor.name = unique_name.generate(f"{param.name}_{name}")
            optimizer._accumulators[name][param.name] = tensor
        else:
            optimizer._add_accumulator("average", param, dtype=wide)
    return optimizer._accumulators[name][param.name]


def tensors(optimizer: Any, param: Any) -> dict[str, Any]:
    """All that is kept for a parameter, by what it is called."""
    copy = master(optimizer, param)
    holders = [param] if copy is None else [param, copy]
    found = {} if copy is None else {"master weight": copy}
    return found | {
        name: held[holder.name]
        for name, held in optimizer._accumulators.items()
        for holder in holders
        if holder.name in held
    }


class Slots:
    """An `Allocate` whose arrays are Paddle's accumulators.

    Args:
        optimizer: whose they are.
        params: the parameters by leaf name.
        names: Paddle's names of the rule's slots.
    """

    def __init__(self, optimizer: Any, params: Mapping[str, Any], names: Mapping[str, str]) -> None:
        self._optimizer, self._params, self._names = optimizer, params, names
        self.tensors: list[Any] = []

    def tensor(self, leaf: Leaf, name: str) -> Any:
        """The tensor behind a kept array.

        Raises:
            StateError: there is none.
        """
        optimizer, param = self._optimizer, self._params[leaf.name]
        if name == "average":
            return average(optimizer, param)
        copy = master(optimizer, param)
        holder, title = param if copy is None else copy, self._names.get(name, name)
        held = optimizer._accumulators.get(called(optimizer, title), {})
        found = copy if name == "master" else held.get(holder.name)
        if found is None:
            raise StateError(
                f"the accumulator {title!r} of parameter {param.name!r} is gone: put it back, or "
                f"make a new optimizer; nothing was changed"
            )
        return found

    def checked(self, leaf: Leaf, name: str, shape: tuple[int, ...], dtype: str) -> Any:
        """The tensor behind a kept array, which has this shape and dtype.

        Raises:
            StateError: it has not.
        """
        tensor = self.tensor(leaf, name)
        check(self._names.get(name, name), leaf.name, tensor, shape, dtype)
        return tensor

    def __call__(
        self, leaf: Leaf, name: str, per: Domain, dtype: np.dtype[Any], initial: Any, /
    ) -> NDArray[Any]:
        tensor = self.checked(leaf, name, leaf.slot_shape(per), dtype.name)
        if not on_cpu(tensor):
            raise StateError(
                f"the accumulator {self._names.get(name, name)!r} of parameter {leaf.name!r} is on "
                f"{tensor.place}, and the parameter on the CPU: bring them together; nothing was "
                f"changed"
            )
        self.tensors.append(tensor)
        return numpy_view(tensor).reshape(-1)


def check(title: str, param: str, tensor: Any, shape: tuple[int, ...], dtype: str) -> None:
    """Refuse an accumulator that is not what its parameter needs.

    Args:
        title: its name.
        param: the parameter's name.
        tensor: the accumulator.
        shape, dtype: what it must have.

    Raises:
        StateError: it has not.
    """
    if not has_memory(tensor):
        raise StateError(
            f"the accumulator {title!r} of parameter {param!r} has less memory than its shape "
            f"{tuple(tensor.shape)} needs: give it values again, or make a new optimizer; nothing "
            f"was changed"
        )
    found = (tuple(tensor.shape), dtype_name(tensor.dtype))
    if found != (shape, dtype):
        raise StateError(
            f"the accumulator {title!r} of parameter {param!r} has shape {found[0]} and dtype "
            f"{found[1]}, and the parameter needs {shape} and {dtype}: if the parameter was "
            f"replaced or cast, make a new optimizer for it; nothing was changed"
        )


def unkept(
    leaf: Leaf, name: str, per: Domain, dtype: np.dtype[Any], initial: Any, /
) -> NDArray[Any]:
    """An `Allocate` for plans and for array code: the right size, and no memory."""
    return np.broadcast_to(np.zeros((), dtype), math.prod(leaf.slot_shape(per)))


def without(optimizer: Any) -> Any:
    """A copy of an optimizer that keeps nothing yet; it shares everything else."""
    return _twin(
        optimizer,
        _accumulators=defaultdict(dict),
        _master_weights={},
        _already_create_accumulator=set(),
        _opti_name_list=[],
        _accumulators_holder={},
    )


KEPT = ("_accumulators", "_master_weights", "_already_create_accumulator", "_opti_name_list")
"""The attributes of an optimizer that `without` has anew."""
