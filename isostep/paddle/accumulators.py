"""Where Paddle keeps what an optimizer remembers: its accumulators, under Paddle's names.

Paddle's own classes make them, so their names, shapes and dtypes are those of a `.pdopt` file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray

from isostep.engines.leaf import Leaf
from isostep.errors import StateError
from isostep.paddle.hyper import attribute
from isostep.paddle.tensors import numpy_view
from isostep.rules.base import Domain


def called(optimizer: Any, accumulator: str) -> str:
    """The name of an accumulator in an optimizer that may have a name itself."""
    return accumulator if optimizer._name is None else f"{optimizer._name}_{accumulator}"


def create(optimizer: Any, params: Sequence[Any], owners: Sequence[int]) -> None:
    """Have Paddle make the accumulators of some parameters, as far as they are not there.

    Args:
        optimizer: whose they are.
        params: the parameters.
        owners: the parameter group of each.
    """
    for group in sorted(set(owners)):
        members = [p for p, owner in zip(params, owners, strict=True) if owner == group]
        _create(optimizer, members, optimizer._param_groups[group] if optimizer.grouped else {})


def _create(optimizer: Any, params: Sequence[Any], group: Mapping[str, Any]) -> None:
    # Groups have all settings that Paddle takes from them, by the defaults that it puts there.
    named = [a for a in group if hasattr(optimizer, attribute(optimizer, a))]
    kept = {attribute(optimizer, a): getattr(optimizer, attribute(optimizer, a)) for a in named}
    block = paddle.static.default_main_program().global_block()
    try:  # Paddle leaves the settings of the group that it looked at last in the optimizer
        optimizer._create_accumulators(block, {**group, "params": list(params)})
    finally:
        vars(optimizer).update(kept)


def master(optimizer: Any, param: Any) -> Any:
    """The float32 copy that is stepped in the place of a parameter; None if there is none."""
    low = optimizer._is_dtype_fp16_or_bf16(param.dtype)
    return optimizer._master_weights.get(param.name) if optimizer._multi_precision and low else None


def average(optimizer: Any, param: Any) -> Any:
    """The moving average of a parameter; if it is not there it begins as the parameter."""
    wide = "float64" if param.dtype == paddle.float64 else "float32"
    name = called(optimizer, "average")
    if param.name not in optimizer._accumulators.get(name, ()):
        tensor = optimizer._add_accumulator("average", param, dtype=wide)
        if paddle.in_dynamic_mode():
            tensor.set_value(param.detach().astype(wide))
    return optimizer._accumulators[name][param.name]


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
        self.fresh: set[str] = set()
        """Names of leaves whose accumulators were made just now."""

    def tensor(self, leaf: Leaf, name: str) -> Any:
        """The tensor behind a kept array."""
        param = self._params[leaf.name]
        if name == "master":
            return master(self._optimizer, param)
        if name == "average":
            return average(self._optimizer, param)
        return self._optimizer._get_accumulator_master(self._names[name], param)

    def __call__(
        self, leaf: Leaf, name: str, per: Domain, dtype: np.dtype[Any], initial: Any, /
    ) -> NDArray[Any]:
        tensor = self.tensor(leaf, name)
        if tuple(tensor.shape) != leaf.slot_shape(per):
            raise StateError(
                f"the accumulator {name!r} of parameter {leaf.name!r} has shape "
                f"{tuple(tensor.shape)}, and the parameter needs {leaf.slot_shape(per)}: if the "
                f"parameter was replaced by another of a new shape, make a new optimizer for it"
            )
        array = numpy_view(tensor).reshape(-1)
        self.tensors.append(tensor)
        if leaf.name in self.fresh and name not in ("master", "average"):
            array[...] = initial
        return array


def unkept(
    leaf: Leaf, name: str, per: Domain, dtype: np.dtype[Any], initial: Any, /
) -> NDArray[Any]:
    """An `Allocate` for plans and for array code: the right size, and no memory."""
    return np.broadcast_to(np.zeros((), dtype), math.prod(leaf.slot_shape(per)))


def forget(optimizer: Any) -> None:
    """Drop everything that is kept; what is needed is made anew."""
    optimizer._accumulators.clear()
    optimizer._master_weights.clear()
    optimizer._already_create_accumulator.clear()
