"""Two optimizers of one rule, Paddle's and isostep's, whose users do the same to both."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import paddle

import isostep.paddle
from isostep.errors import GradientError, HyperparameterError, ParameterError, StateError

from .twins import RULES

SHAPES = ((4, 4), (5,), (4, 4), (3, 2), (4, 4))
OWN = ["paddle.optimizer"]
REFUSALS = (GradientError, HyperparameterError, ParameterError, StateError)

BOUNDS = {"float64": 1e-12, "float32": 1e-5}
"""As in the tests without edits: a dozen steps, in float32 of arithmetic in another order."""


class World:
    """An optimizer, its parameters, and what its user does with them.

    Args:
        classes: `paddle.optimizer` or `isostep.paddle`.
        rule: the class.
        grouped: whether there are parameter groups.
        dtype: of the parameters.
        **options: of the class.
    """

    def __init__(
        self, classes: Any, rule: str, grouped: bool, dtype: str = "float64", **options: Any
    ) -> None:
        self.rule, self.dtype = rule, dtype
        self._made, self._steps = 0, 0
        self.params = [self.parameter(shape) for shape in SHAPES[:4]]
        self.gradient: Callable[[World, Any, Any], Any] | None = None
        """What the first parameter's gradient is at the next step, made of a usual one; `...` if
        it is there already."""
        given: Any = list(self.params)
        if grouped:
            given = [
                {"params": self.params[:2]},
                {"params": self.params[2:], "learning_rate": 0.5},
            ]
        self._class: Any = getattr(classes, rule)
        self._arguments = RULES[rule] | options
        self.optimizer = self._class(parameters=given, **self._arguments)
        kept = vars(self.optimizer)
        named = [f"_{name}" for name in self._arguments if name != "learning_rate"]
        self.settings = {name: kept[name] for name in named if name in kept}
        """What is set for all groups."""
        self.ours = classes is isostep.paddle
        self.kept: list[Any] = []
        """What its user holds on to: memory that is shared must live."""
        self.saved: list[Any] = []

    # -- what edits are made of ------------------------------------------------------------------

    def values(self, shape: tuple[int, ...], dtype: str = "") -> Any:
        """A tensor of positive numbers, another each time."""
        self._made += 1
        chance = np.random.default_rng(self._made)
        return paddle.to_tensor(chance.uniform(0.5, 1.5, size=shape)).astype(dtype or self.dtype)

    def parameter(self, shape: tuple[int, ...]) -> Any:
        """A parameter of a new name."""
        start = paddle.nn.initializer.Assign(self.values(shape))
        attr = paddle.ParamAttr(initializer=start)
        made = paddle.create_parameter(list(shape), self.dtype, attr=attr)
        made.name = f"w{self._made}"  # the same in each such world
        return made

    def some(self, k: int) -> Any:
        """One of the parameters."""
        return self.params[k % len(self.params)]

    @property
    def grouped(self) -> bool:
        """Whether there are parameter groups."""
        return bool(self.groups) and isinstance(self.groups[0], dict)

    def anew(self) -> Any:
        """Another optimizer of the same parameters and groups, without a state."""
        if not self.grouped:
            return self._class(parameters=list(self.listed), **self._arguments)
        settings = ("params", "learning_rate", "weight_decay")
        groups = [{k: g[k] for k in settings if k in g} for g in self.groups]
        return self._class(parameters=groups, **self._arguments)

    @property
    def groups(self) -> list[Any]:
        """The parameter groups."""
        return self.optimizer._param_groups

    @property
    def listed(self) -> list[Any]:
        """The list that an optimizer without groups takes parameters from."""
        return self.optimizer._parameter_list

    def slots(self) -> dict[str, Any]:
        """One kind of accumulators, by name of the parameter; empty if the rule has none."""
        # Not mean_square: beside a mean_grad that is not of it, its root is that of a difference.
        for name in ("moment1", "velocity", "moment", "momentum", "_avg_squared_grad"):
            if self.optimizer._accumulators.get(name):
                return self.optimizer._accumulators[name]
        return {}

    def slot(self, k: int) -> Any:
        """The accumulator of one of the parameters."""
        return self.slots()[self.some(k).name]

    def has_slot(self, k: int) -> bool:
        return self.some(k).name in self.slots()

    # -- steps -----------------------------------------------------------------------------------

    def step(self, act: Callable[[World], None] | None = None) -> None:
        """One step; the gradients are those of all such worlds.

        Args:
            act: takes it, if not `optimizer.step()`.
        """
        self._steps += 1
        chance = np.random.default_rng([7, self._steps])
        for k, param in enumerate(self.params):
            if not param._is_initialized():
                if not self.ours:  # Paddle decays what it then passes over
                    param.grad = None
                continue
            values = chance.normal(size=tuple(param.shape))
            gradient = paddle.to_tensor(values).astype(param.dtype)
            if k == 0 and self.gradient is not None:
                gradient = self.gradient(self, param, gradient)
            if gradient is not ...:
                _give(param, gradient)
        if act is None:
            self.optimizer.step()
        else:
            act(self)
        self.gradient = None

    def follow(self, other: World) -> None:
        """Take over the values of another world, in the memory that they have here, which
        accumulators there are, and what comes next, wherever an error has left this one."""
        self._made, self._steps, self.gradient = other._made, other._steps, other.gradient
        for mine, its in zip(self.params, other.params, strict=True):
            _write(mine, its)
        here, there = self.optimizer._accumulators, other.optimizer._accumulators
        for name in [*here]:
            for param in here[name].keys() - there.get(name, {}).keys():
                del here[name][param]
        for name, held in there.items():
            for param, tensor in held.items():
                if param in here[name]:
                    _write(here[name][param], tensor)
                else:
                    here[name][param] = tensor.clone()
        self.optimizer._already_create_accumulator = set(
            other.optimizer._already_create_accumulator
        )

    def tensors(self) -> list[Any]:
        """Parameters and accumulators."""
        held = self.optimizer._accumulators.values()
        return [*self.params, *(tensor for each in held for tensor in each.values())]

    def snapshot(self) -> dict[str, Any]:
        """Parameters and accumulators, by name; Paddle also makes accumulators of parameters
        without memory, which it then passes over."""
        optimizer = self.optimizer
        found = {f"param {k}": p for k, p in enumerate(self.params)}
        empty = {p.name for p in self.params} - {p.name for p in self.params if p._is_initialized()}
        for name, held in optimizer._accumulators.items():
            found |= {f"{name} {param}": held[param] for param in held.keys() - empty}
        return {name: tensor.numpy() for name, tensor in found.items() if whole(tensor)}


def make(rule: str, grouped: bool, dtype: str = "float64", **options: Any) -> tuple[World, World]:
    """Paddle's world and isostep's, which may have options of its own."""
    return (
        World(paddle.optimizer, rule, grouped, dtype),
        World(isostep.paddle, rule, grouped, dtype, **options),
    )


def attempt(act: Callable[..., None], *args: Any) -> BaseException | None:
    """A step or an edit; the error, if there is one."""
    try:
        act(*args)
    except Exception as error:
        return error
    return None


def apart(theirs: dict[str, Any], ours: dict[str, Any]) -> float:
    """The largest relative distance between two snapshots."""
    assert ours.keys() == theirs.keys()
    found = 0.0
    for name, x in theirs.items():
        y = ours[name]
        assert x.shape == y.shape, name
        if x.size:
            x, y = x.astype("float64"), y.astype("float64")
            assert np.array_equal(np.isnan(x), np.isnan(y)), name
            distance = np.nanmax(np.abs(x - y), initial=0.0)
            found = max(found, float(distance / (np.nanmax(np.abs(x), initial=0.0) + 1e-30)))
    return found


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether two snapshots have the same bits, as far as both have the same entries; what a step
    has only begun is there anew."""
    return all(np.array_equal(after[name], x, equal_nan=True) for name, x in before.items())


def _give(param: Any, gradient: Any) -> None:
    param.grad = None  # or the next line would write into the one before
    if gradient is None:
        return
    try:
        param.grad = gradient
    except ValueError:  # where there was one that had rows only Paddle takes no other
        stopped, param.stop_gradient = param.stop_gradient, False
        param.clear_gradient(set_to_zero=False)
        (param * 0.0).sum().backward()
        param.stop_gradient, param.grad = stopped, None
        param.grad = gradient


def _write(tensor: Any, other: Any) -> None:
    """Write the values of another tensor of the same shape into the memory of one."""
    if whole(tensor) and whole(other) and str(tensor.dtype) == str(other.dtype):
        new = other.numpy()
        size = tensor._holder_size() - tensor._offset()
        memory = (ctypes.c_char * size).from_address(tensor.data_ptr())
        strides = [step * tensor.element_size() for step in tensor.get_strides()]
        np.ndarray(new.shape, new.dtype, memory, strides=strides)[...] = new


def whole(tensor: Any) -> bool:
    """Whether a tensor has elements, and the memory that its shape and strides need."""
    if not tensor._is_initialized() or 0 in tensor.shape:
        return False
    pairs = zip(tensor.shape, tensor.get_strides(), strict=True)
    elements = 1 + sum((n - 1) * step for n, step in pairs)
    return tensor._offset() + elements * tensor.element_size() <= tensor._holder_size()
