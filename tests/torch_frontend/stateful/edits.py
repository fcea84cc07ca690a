"""What users do between two steps: to parameters, to groups, to states, to the whole optimizer.

Each edit gets a world and two numbers, of which the first says which parameter, the second how. An
edit that cannot be done raises; then it must raise in the other world too.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .world import DTYPES, SECOND, SHAPES, Nothing, World

Edit = Callable[[World, int, int], None]
EDITS: dict[str, Edit] = {}
STRIDE = 250
"""Instructions of a step between two places where it may be struck first; a first step has some
5,000."""


def edit(function: Edit) -> Edit:
    EDITS[function.__name__] = function
    return function


def one_of(k: int, *choices: Any) -> Any:
    return choices[k % len(choices)]


# -- the memory of parameters ----------------------------------------------------------------------


@edit
def write_into_a_parameter(w: World, i: int, k: int) -> None:
    p = w.param(i)
    new = w.values(p.shape, p.dtype)
    with torch.no_grad():
        if k % 4 == 0:
            p.copy_(new)
        elif k % 4 == 1:
            p.data.mul_(0.5)
        elif k % 4 == 2 and p.dtype != torch.bfloat16:
            p.detach().numpy()[...] = new.numpy()
        else:
            p.detach().fill_(0.5)


@edit
def replace_the_memory(w: World, i: int, k: int) -> None:
    p = w.param(i)
    data = p.data
    if k % 6 == 0:
        p.data = data.clone()
    elif k % 6 == 1:
        p.data = torch.cat([w.values((3,), p.dtype), data.reshape(-1)])[3:].view(p.shape)
    elif k % 6 == 2:
        with torch.no_grad():
            p.set_(data.clone())
    elif k % 6 == 3:
        wide = torch.empty(*p.shape, 2, dtype=p.dtype)
        p.data = wide[..., 0].copy_(data)
    elif k % 6 == 4:
        torch.utils.swap_tensors(p, type(p)(data.clone()) if p.is_leaf else data.clone())
    else:
        storage = data.clone().untyped_storage()
        with torch.no_grad():
            p.set_(storage, 0, p.shape, data.clone().stride())


@edit
def transpose(w: World, i: int, k: int) -> None:
    p = w.param(i)
    if p.ndim < 2:
        raise Nothing("it has no two axes")
    if k % 3 == 0:
        p.data = p.data.transpose(-1, -2)  # a square one: only the strides change
    elif k % 3 == 1:
        p.data.t_() if p.ndim == 2 else p.data.transpose_(-1, -2)
    else:
        p.data = p.data.transpose(-1, -2).contiguous().transpose(-1, -2)


@edit
def order_of_memory(w: World, i: int, k: int) -> None:
    p = w.param(i)
    if p.ndim == 4:
        p.data = p.data.contiguous(
            memory_format=one_of(k, torch.channels_last, torch.contiguous_format)
        )
    else:
        p.data = p.data.clone(memory_format=torch.contiguous_format)


@edit
def reshape(w: World, i: int, k: int) -> None:
    p = w.param(i)
    n = p.numel()
    shape = one_of(k, (n,), (1, n), (n, 1), p.shape[::-1])
    if k % 2:
        p.data = p.data.reshape(shape)
    else:
        p.data.resize_(shape) if not p.requires_grad else p.detach().resize_(shape)
    if i % 2:
        p.grad = None


@edit
def resize(w: World, i: int, k: int) -> None:
    """More rows, or fewer: growing and pruned models."""
    p = w.param(i)
    if not p.ndim:
        raise Nothing("it has no rows")
    rows = max(0, p.shape[0] + one_of(k, 1, -1))
    new = w.values((rows, *p.shape[1:]), p.dtype)
    p.grad = None
    if k % 3 == 0:
        p.data = new
    elif k % 3 == 1:
        with torch.no_grad():
            p.data.resize_(new.shape)
        p.data = new
    else:
        with torch.no_grad():
            p.set_(new)
    if i % 2:
        held = w.optimizer.state.get(p, {})
        for key, value in list(held.items()):
            if isinstance(value, Tensor) and value.ndim:
                held[key] = torch.zeros_like(p.detach(), dtype=value.dtype)


@edit
def free_and_bring_back(w: World, i: int, k: int) -> None:
    """As sharded training frees a parameter between two uses, with a step in between."""
    p = w.param(i)
    storage = p.untyped_storage().data_ptr()
    others = [q for q in w.params if q is not p and q.untyped_storage().data_ptr() == storage]
    if not p.is_contiguous() or p.storage_offset() or others:
        raise Nothing("others may lie in its storage")
    if p.is_shared():
        raise Nothing("torch itself ends the process over shared memory that is resized")
    before, grad = p.detach().clone(), p.grad
    size = p.untyped_storage().nbytes()
    p.grad = None
    p.untyped_storage().resize_(0)
    try:
        if k % 2:
            w.optimizer.step()
    finally:
        p.untyped_storage().resize_(size)
        with torch.no_grad():
            p.copy_(before)
        p.grad = grad


@edit
def cast_the_model(w: World, i: int, k: int) -> None:
    models = nn.ParameterList([p for p in w.params if isinstance(p, nn.Parameter)])
    swap = i % 3 == 0
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        models.to(DTYPES[k % len(DTYPES)])
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@edit
def cast_a_parameter(w: World, i: int, k: int) -> None:
    p = w.param(i)
    p.data = p.data.to(DTYPES[k % len(DTYPES)])
    p.grad = None


@edit
def share_memory(w: World, i: int, k: int) -> None:
    for p in w.params:
        p.grad = None  # torch itself ends the process over gradients without memory
    if k % 3 == 0:
        w.param(i).share_memory_()
    elif k % 3 == 1:
        nn.ParameterList([p for p in w.params if isinstance(p, nn.Parameter)]).share_memory()
    elif hasattr(w.optimizer, "share_memory"):
        w.optimizer.share_memory()


@edit
def tie(w: World, i: int, k: int) -> None:
    """Two parameters in one memory."""
    p, q = w.param(i), w.param(i + 1 + k % 2)
    if p.shape != q.shape or p.dtype != q.dtype:
        q = next((q for q in w.stepped if q is not p and q.shape == p.shape), None)
        if q is None or p.dtype != q.dtype:
            raise Nothing("no two have one shape")
    q.data = p.data
    q.grad = None


@edit
def flatten(w: World, i: int, k: int) -> None:
    """All parameters of one dtype become views of one buffer."""
    dtype = w.param(i).dtype
    those = [p for p in w.params if p.dtype == dtype]
    flat = torch.cat([p.detach().reshape(-1) for p in those])
    parts = flat.split([p.numel() for p in those])
    for p, part in zip(those, parts, strict=True):
        p.data = part.view(p.shape)
    if k % 2:
        w.kept.append(flat)


@edit
def freeze(w: World, i: int, k: int) -> None:
    p = w.param(i)
    p.requires_grad_(k % 2 == 1)
    if k % 3 == 0:
        p.grad = None


# -- groups ----------------------------------------------------------------------------------------


def group_of(w: World, i: int) -> dict[str, Any]:
    if not w.groups:
        raise Nothing("there is no group")
    return w.groups[i % len(w.groups)]


def dtype_of(w: World, i: int) -> torch.dtype:
    return w.param(i).dtype


@edit
def add_a_group(w: World, i: int, k: int) -> None:
    new = [w.new_param(k + n, dtype_of(w, i), (i + n) % 7) for n in range(1 + k % 3)]
    group = {"params": w.with_names(new, len(w.params)), "lr": one_of(i, 0.125, 0.25)}
    w.params += new
    if k % 4 == 0:
        group["lr_ratio"] = 0.5
    w.add_group(group)


@edit
def append_a_parameter(w: World, i: int, k: int) -> None:
    p = w.new_param(k, dtype_of(w, i), i % 7)
    w.params.append(p)
    held = group_of(w, i)
    if k % 2:
        held["params"].append(p)
    else:
        held["params"] = [p, *held["params"]]


@edit
def remove_a_parameter(w: World, i: int, k: int) -> None:
    held = group_of(w, i)
    if len(held["params"]) < 2:
        raise Nothing("it would leave none")
    p = held["params"].pop(k % len(held["params"]))
    if k % 2:
        w.optimizer.state.pop(p, None)


@edit
def replace_a_parameter(w: World, i: int, k: int) -> None:
    """As growing and pruned models do, with its state or without."""
    held = group_of(w, i)
    if not held["params"]:
        raise Nothing("the group is empty")
    at = k % len(held["params"])
    old = held["params"][at]
    new = nn.Parameter(w.values(old.shape, old.dtype))
    w.params[next(n for n, p in enumerate(w.params) if p is old)] = new
    held["params"][at] = new
    state = w.optimizer.state.pop(old, None)
    if i % 3 == 0 and state:
        w.optimizer.state[new] = state
    elif i % 3 == 1 and state:
        w.optimizer.state[new] = {key: copy.deepcopy(value) for key, value in state.items()}


@edit
def reorder(w: World, i: int, k: int) -> None:
    held = group_of(w, i)
    if k % 3 == 0:
        held["params"].reverse()
    elif k % 3 == 1:
        held["params"] = held["params"][1:] + held["params"][:1]
    else:
        w.groups.reverse()


@edit
def move_between_groups(w: World, i: int, k: int) -> None:
    source, target = group_of(w, i), group_of(w, i + 1)
    if len(source["params"]) < 2 or source is target:
        raise Nothing("there is nothing to move")
    target["params"].append(source["params"].pop(k % len(source["params"])))


@edit
def pop_a_group(w: World, i: int, k: int) -> None:
    if len(w.groups) < 2:
        raise Nothing("it would leave none")
    taken = w.groups.pop(i % len(w.groups))
    if k % 2:
        w.groups.append(taken)


@edit
def step_one_group_at_a_time(w: World, i: int, k: int) -> None:
    """As sharded training steps its sub-groups, one after the other, in the place of all."""
    every = list(w.groups)
    try:
        for group in every:
            w.optimizer.param_groups = [group] if k % 2 else w.groups
            if k % 2 == 0:
                w.groups[:] = [group]
            w.optimizer.step()
    finally:
        if k % 2:
            w.optimizer.param_groups = every
        else:
            w.groups[:] = every


@edit
def replace_groups(w: World, i: int, k: int) -> None:
    if k % 3 == 0:
        w.optimizer.param_groups = list(w.groups)
    elif k % 3 == 1:
        w.groups[:] = [dict(group) for group in w.groups]
    else:
        for group in w.groups:
            group["params"] = list(group["params"])


@edit
def hyperparameter(w: World, i: int, k: int) -> None:
    held = group_of(w, i)
    name = w.optimizer.__class__.__name__
    choices: list[tuple[str, Any]] = [
        ("lr", 0.25),
        ("lr", torch.tensor(0.125)),
        ("weight_decay", 0.0),
        ("weight_decay", 0.25),
        ("maximize", True),
        ("maximize", False),
        ("lr_ratio", 0.5),
        ("of_the_users_own", "anything"),
        *{
            "SGD": [("momentum", 0.5), ("momentum", 0.0), ("nesterov", True), ("dampening", 0.0)],
            "Adagrad": [("eps", 0.5), ("lr_decay", 0.25)],
            "RMSprop": [("alpha", 0.5), ("momentum", 0.0), ("momentum", 0.25), ("centered", False)],
            "Adadelta": [("rho", 0.5), ("eps", 0.5)],
            "Adafactor": [("eps", (0.25, 0.5)), ("d", 2.0), ("beta2_decay", -0.5)],
        }.get(name, [("betas", (0.5, 0.75)), ("eps", 0.5), ("amsgrad", False), ("amsgrad", True)]),
    ]
    key, value = choices[k % len(choices)]
    held[key] = copy.deepcopy(value)


@edit
def switch(w: World, i: int, k: int) -> None:
    """What decides how a group is stepped."""
    held = group_of(w, i)
    key = one_of(k, "foreach", "differentiable", "capturable", "fused")
    if key in held:
        held[key] = one_of(i, False, True)


# -- states ----------------------------------------------------------------------------------------


@edit
def write_into_a_slot(w: World, i: int, k: int) -> None:
    held, key = w.slot(i, k)
    value = held[key]
    factor = 2.0 if any(part in key for part in SECOND) else 0.5
    if k % 4 == 0:
        value.mul_(factor)
    elif k % 4 == 1:
        value.data.mul_(factor)
    elif k % 4 == 2 and value.dtype != torch.bfloat16:
        array = value.detach().numpy()
        array *= factor
    else:
        value.detach().fill_(0.25)


@edit
def replace_the_memory_of_a_slot(w: World, i: int, k: int) -> None:
    held, key = w.slot(i, k)
    value = held[key]
    new = value.detach().clone().mul_(1.5)
    if k % 7 == 0:
        value.data = new
    elif k % 7 == 1:
        value.set_(new)
    elif k % 7 == 2:
        torch.utils.swap_tensors(value, new)
    elif k % 7 == 3:
        held[key] = new
    elif k % 7 == 4:
        value.share_memory_()
    elif k % 7 == 5:
        value.untyped_storage().resize_(value.untyped_storage().nbytes() + 64)
    else:
        value.resize_(value.shape)


@edit
def lay_a_slot_otherwise(w: World, i: int, k: int) -> None:
    held, key = w.slot(i, k)
    value = held[key]
    if value.ndim < 2:
        raise Nothing("it has no two axes")
    if k % 3 == 0:
        value.data = value.transpose(-1, -2).contiguous().transpose(-1, -2)
    elif k % 3 == 1:
        held[key] = value.transpose(-1, -2).contiguous().transpose(-1, -2)
    elif value.shape[-1] == value.shape[-2]:
        value.data = value.data.transpose(-1, -2)


@edit
def cast_a_slot(w: World, i: int, k: int) -> None:
    held, key = w.slot(i, k)
    dtype = DTYPES[k % len(DTYPES)]
    if i % 2:
        held[key] = held[key].to(dtype)
    else:
        held[key].data = held[key].data.to(dtype)


@edit
def to_the_device(w: World, i: int, k: int) -> None:
    """The loop that everybody writes after loading."""
    for held in list(w.optimizer.state.values()):
        for key, value in held.items():
            if isinstance(value, Tensor):
                if k % 3 == 0:
                    value.data = value.data.to("cpu", copy=True)
                elif k % 3 == 1:
                    held[key] = value.to("cpu")
                else:
                    held[key] = value.to("cpu", copy=True)


@edit
def edit_a_step(w: World, i: int, k: int) -> None:
    held = w.step_of(i)
    step, new = held["step"], float(2 + i % 3)
    if k % 7 == 0:
        step.fill_(new)
    elif k % 7 == 1:
        step.data.fill_(new)
    elif k % 7 == 2:
        step.detach().numpy()[...] = new
    elif k % 7 == 3:
        held["step"] = torch.tensor(new, dtype=step.dtype)
    elif k % 7 == 4:
        step.data = torch.tensor(new, dtype=step.dtype)
    elif k % 7 == 5:
        step.add_(1)
    else:
        step.share_memory_()


@edit
def drop_state(w: World, i: int, k: int) -> None:
    """torch begins anew."""
    if k % 3 == 0:
        w.optimizer.state.clear()
    elif k % 3 == 1:
        w.optimizer.state.pop(w.param(i), None)
    else:
        w.optimizer.state[w.param(i)] = {}


@edit
def something_of_ones_own(w: World, i: int, k: int) -> None:
    w.optimizer.state[w.param(i)]["of_the_users_own"] = w.values((2,))


@edit
def swap_states(w: World, i: int, k: int) -> None:
    """Two parameters of one shape exchange what was remembered of them."""
    state = w.optimizer.state
    p = w.param(i)
    those = [q for q in w.stepped if q is not p and q.shape == p.shape and q.dtype == p.dtype]
    if not those or p not in state or those[0] not in state:
        raise Nothing("there are no two")
    q = those[0]
    if k % 2:
        state[p], state[q] = state[q], state[p]
    else:
        for key in state[p].keys() & state[q].keys():
            state[p][key], state[q][key] = state[q][key], state[p][key]


# -- saving, loading, copying ----------------------------------------------------------------------


@edit
def save(w: World, i: int, k: int) -> None:
    found = w.optimizer.state_dict()
    w.saved.append(found if k % 3 == 0 else copy.deepcopy(found))


@edit
def load(w: World, i: int, k: int) -> None:
    saved = w.saved_state(i) if k % 2 else w.optimizer.state_dict()
    w.load(saved if k % 3 else copy.deepcopy(saved))


@edit
def load_through_a_file(w: World, i: int, k: int) -> None:
    file = io.BytesIO()
    torch.save(w.optimizer.state_dict(), file)
    file.seek(0)
    w.load(torch.load(file, weights_only=True))


@edit
def load_into_a_new_one(w: World, i: int, k: int) -> None:
    saved = w.optimizer.state_dict()
    w.optimizer = w.anew()
    w.load(saved if k % 2 else copy.deepcopy(saved))


@edit
def load_an_edited_state(w: World, i: int, k: int) -> None:
    saved = copy.deepcopy(w.optimizer.state_dict())
    places = [k for k, entry in saved["state"].items() if isinstance(k, int) and entry]
    entries = [saved["state"][k] for k in sorted(places)]  # in one order in both worlds
    if k % 5 == 0:
        for group in saved["param_groups"]:
            group["lr"] = 0.0625
    elif k % 5 == 1:
        for entry in entries:
            if "step" in entry:
                entry["step"] = torch.tensor(5.0)
    elif k % 5 == 2:
        for entry in entries[:1]:
            entry.clear()
    elif k % 5 == 3:
        saved["param_groups"].append(saved["param_groups"][0])  # is refused
    else:
        saved["param_groups"][0]["params"].append(99)  # is refused
    w.load(saved)


@edit
def copy_all(w: World, i: int, k: int) -> None:
    w.params, w.optimizer, w.kept = copy.deepcopy((w.params, w.optimizer, w.kept))


@edit
def pickle_all(w: World, i: int, k: int) -> None:
    w.params, w.optimizer = pickle.loads(pickle.dumps((w.params, w.optimizer)))


@edit
def a_step_is_struck(w: World, i: int, k: int) -> None:
    """By Ctrl-C or by an exception out of nowhere, anywhere in it."""
    w.struck(1 + i * STRIDE + k * STRIDE // 24)


@edit
def nothing(w: World, i: int, k: int) -> None:
    """Only the steps that follow."""


@edit
def look(w: World, i: int, k: int) -> None:
    """Reading changes nothing."""
    repr(w.optimizer)
    [w.optimizer.state[p] for p in w.stepped]
    w.optimizer.zero_grad(set_to_none=k % 2 == 0)


assert len(SHAPES) == 8
