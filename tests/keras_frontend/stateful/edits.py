"""What Keras users on torch do between two steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import torch

from .world import Nothing, World

Edit = Callable[[World, int, int], None]
EDITS: dict[str, Edit] = {}


def edit(function: Edit) -> Edit:
    EDITS[function.__name__] = function
    return function


def one_of(k: int, *choices: Any) -> Any:
    return choices[k % len(choices)]


# -- variables and slots ---------------------------------------------------------------------------


@edit
def assign(w: World, i: int, k: int) -> None:
    v = w.target(i, k)
    new = abs(w.values(v.shape))  # slots hold squares
    if k // 2 % 3 == 0:
        v.assign(new)
    elif k // 2 % 3 == 1:
        v.assign_add(new)
    else:
        v.assign(np.zeros((*v.shape, 2)))  # Keras refuses it


@edit
def write_into_the_tensor(w: World, i: int, k: int) -> None:
    tensor = w.target(i, k)._value
    if k // 2 % 3 == 0:
        tensor.data.mul_(0.5)
    elif k // 2 % 3 == 1 and tensor.dtype in (torch.float32, torch.float64):
        array = tensor.detach().numpy()
        array *= 0.5
    else:
        with torch.no_grad():
            tensor.fill_(0.5)


@edit
def replace_the_tensor(w: World, i: int, k: int) -> None:
    v = w.target(i, k)
    new = v._value.detach().clone() * 0.5
    v._value = torch.nn.Parameter(new, requires_grad=v._value.requires_grad)


@edit
def replace_the_memory(w: World, i: int, k: int) -> None:
    tensor = w.target(i, k)._value
    data, way = tensor.data, k // 2 % 6
    if way == 0:
        tensor.data = data.clone()
    elif way == 1:
        tensor.data = torch.cat([data.new_zeros(3), data.reshape(-1)])[3:].view(data.shape)
    elif way == 2:
        tensor.data.set_(data.clone())
    elif way == 3:
        tensor.data = data.clone()  # memory that is NumPy's cannot be resized
        tensor.data.untyped_storage().resize_(1 << 14)
    elif way == 4:
        tensor.data.share_memory_()
    else:
        torch.utils.swap_tensors(
            tensor, torch.nn.Parameter(data.clone(), requires_grad=tensor.requires_grad)
        )


@edit
def lay_otherwise(w: World, i: int, k: int) -> None:
    tensor, way = w.target(i, k)._value, k // 2 % 3
    if tensor.ndim < 2:
        raise Nothing("it has no two axes")
    w.odd = True  # a slot in another order than its variable's is array code's
    if way == 0:
        if tensor.shape[-1] != tensor.shape[-2]:
            raise Nothing("it is not square")
        tensor.data = tensor.data.transpose(-1, -2)
    elif way == 1:
        tensor.data = tensor.data.transpose(-1, -2).contiguous().transpose(-1, -2)
    else:
        wide = torch.zeros(*tensor.shape, 2, dtype=tensor.dtype)
        wide[..., 0] = tensor.data
        tensor.data = wide[..., 0]


@edit
def cast(w: World, i: int, k: int) -> None:
    w.odd = True  # Keras' own step may not take it
    tensor = w.target(i, k)._value
    tensor.data = tensor.data.to(one_of(k // 2, torch.float64, torch.float32))


@edit
def flatten(w: World, i: int, k: int) -> None:
    """All variables of one dtype become views of one buffer."""
    dtype = w.variable(i)._value.dtype
    those = [v._value for v in w.variables if v._value.dtype == dtype]
    flat = torch.cat([t.detach().reshape(-1) for t in those])
    for tensor, part in zip(those, flat.split([t.numel() for t in those]), strict=True):
        tensor.data = part.view(tensor.shape)


@edit
def freeze(w: World, i: int, k: int) -> None:
    v = w.variable(i)
    if k % 2:
        v.trainable = k % 4 == 1
    else:
        v._value.requires_grad_(k % 4 == 0)


@edit
def constrain(w: World, i: int, k: int) -> None:
    w.variable(i).constraint = keras.constraints.MaxNorm(1.5) if k % 2 else None


# -- the optimizer ---------------------------------------------------------------------------------


@edit
def count(w: World, i: int, k: int) -> None:
    if k % 2:
        w.optimizer.iterations.assign(1 + i % 5)
    else:
        w.optimizer.iterations._value.data.fill_(1 + i % 5)


@edit
def rate(w: World, i: int, k: int) -> None:
    value = one_of(i, 0.125, 0.0625, 0.25)
    if k % 4 == 0:
        w.optimizer.learning_rate = value
    elif k % 4 == 1:
        w.optimizer.learning_rate.assign(value)
    elif k % 4 == 2:
        w.optimizer.learning_rate._value.data.fill_(value)
    else:
        w.optimizer.learning_rate = keras.optimizers.schedules.ExponentialDecay(value, 1, 0.5)


@edit
def hyperparameter(w: World, i: int, k: int) -> None:
    choices: list[tuple[str, Any]] = {
        "SGD": [("momentum", 0.5), ("nesterov", False)],
        "Adagrad": [("epsilon", 0.5)],
        "RMSprop": [("rho", 0.5), ("epsilon", 0.5)],
        "Adadelta": [("rho", 0.5), ("epsilon", 0.5)],
        "Adafactor": [("clip_threshold", 2.0)],
    }.get(type(w.optimizer).__name__, [("beta_1", 0.75), ("epsilon", 0.5)])
    name, value = one_of(k, *choices, ("weight_decay", 0.125), ("clipnorm", 0.5))
    if name == "momentum" and not w.optimizer.momentum:
        raise Nothing("Keras has made no slot for it")
    if name == "clipnorm" and (w.optimizer.global_clipnorm or w.optimizer.clipvalue):
        raise Nothing("Keras has one of them")
    setattr(w.optimizer, name, value)


@edit
def overwrite_with_averages(w: World, i: int, k: int) -> None:
    w.optimizer.finalize_variable_values(w.variables)


# -- states ----------------------------------------------------------------------------------------


@edit
def save(w: World, i: int, k: int) -> None:
    store: dict[str, Any] = {}
    w.optimizer.save_own_variables(store)
    w.saved.append({name: np.array(value) for name, value in store.items()})


@edit
def load(w: World, i: int, k: int) -> None:
    if not w.saved:
        raise Nothing("no state was saved yet")
    w.optimizer.load_own_variables(w.saved[i % len(w.saved)])


@edit
def load_what_does_not_fit(w: World, i: int, k: int) -> None:
    store: dict[str, Any] = {}
    w.optimizer.save_own_variables(store)
    store.pop(str(len(store) - 1))
    w.optimizer.load_own_variables(store)  # Keras warns and takes nothing


@edit
def set_weights(w: World, i: int, k: int) -> None:
    weights = [np.abs(np.array(v)) for v in w.optimizer.variables]
    for weight in weights[2:]:
        weight *= 0.5
    w.optimizer.set_weights(weights)


@edit
def go_on_in_a_new_one(w: World, i: int, k: int) -> None:
    store: dict[str, Any] = {}
    w.optimizer.save_own_variables(store)
    made = type(w.optimizer).from_config(w.optimizer.get_config())
    if k % 2:
        made.build(w.variables)
    else:
        w.variables = list(w.variables)
        made.build(w.variables)
    made.load_own_variables({name: np.array(value) for name, value in store.items()})
    w.optimizer = made


@edit
def begin_anew(w: World, i: int, k: int) -> None:
    w.begin()


@edit
def step_by_values(w: World, i: int, k: int) -> None:
    """Which writes to nothing that the optimizer has."""
    before = w.snapshot()
    values = [v._value.detach().clone() for v in w.variables]
    kept = [v._value.detach().clone() for v in w.optimizer.variables]
    grads = [torch.tensor(w.values(v.shape), dtype=v._value.dtype) for v in w.variables]
    w.optimizer.stateless_apply(kept, grads, values)
    assert not w.changed(before)


@edit
def nothing(w: World, i: int, k: int) -> None:
    """Only the steps that follow."""


@edit
def look(w: World, i: int, k: int) -> None:
    """Reading changes nothing."""
    w.optimizer.get_config()
    [np.array(v) for v in w.optimizer.variables]
