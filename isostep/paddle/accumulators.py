"""Where Paddle keeps what an optimizer remembers: its accumulators, under Paddle's names.

Paddle's own classes make them, so their names, shapes and dtypes are those of a `.pdopt` file. Step
counts are integers here; Paddle counts by the powers of the betas, which follow when someone looks.
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

POWERS = {"beta1_pow_acc": "beta1", "beta2_pow_acc": "beta2"}


def create(optimizer: Any, params: Sequence[Any], group: Mapping[str, Any]) -> None:
    """Have Paddle make the accumulators of some parameters, as far as they are not there.

    Args:
        optimizer: whose they are.
        params: parameters of one group.
        group: its settings; empty where there are no groups.
    """
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
    called = "average" if optimizer._name is None else f"{optimizer._name}_average"
    if param.name not in optimizer.kept.get(called, ()):
        tensor = optimizer._add_accumulator("average", param, dtype=wide)
        if paddle.in_dynamic_mode():
            tensor.set_value(param.detach().astype(wide))
    return optimizer.kept[called][param.name]


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


def powers(optimizer: Any, param: Any) -> dict[str, Any]:
    """The tensors that hold the powers of the betas, by their names; empty if there are none."""
    kept = {name: tensors for name, tensors in optimizer.kept.items() if tensors}
    found: dict[str, Any] = {}
    for name in POWERS:
        called = f"{optimizer._name}_{name}" if optimizer._name is not None else name
        copy = master(optimizer, param)
        tensor = kept.get(called, {}).get((param if copy is None else copy).name)
        if tensor is not None:
            found[name] = tensor
    return found


def power_after(beta: float, steps: int) -> float:
    """What Paddle holds after some steps: the power for the next one."""
    return beta ** (steps + 1)


def steps_of(power: Any, beta: float) -> int:
    """How many steps a power of beta stands for, in Paddle's counting.

    Paddle multiplies once a step in the dtype of the power, and rounds each time; isostep rounds
    once. Both are known exactly, so both are read exactly.

    Args:
        power: the accumulator, a NumPy scalar of its dtype.
        beta: the hyperparameter.
    """
    if not 0.0 < beta < 1.0:
        return 0
    least = np.nextafter(np.zeros_like(power), np.ones_like(power))
    guess = math.log(max(float(power), float(least))) / math.log(beta)
    products = np.full(int(1.02 * guess) + 64, beta, dtype=power.dtype)
    same = np.flatnonzero(np.multiply.accumulate(products) == power)
    return int(same[0]) if len(same) else max(0, round(guess) - 1)
