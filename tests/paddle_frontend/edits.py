"""What users of Paddle do to an optimizer and its parameters between two steps.

Each edit is a function of a world and two small numbers, so that both worlds get the same, and has
what the step after it is: by kernels, Paddle's own, or refused.
"""

from __future__ import annotations

import copy
import io
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from .twins import RULES
from .worlds import World

Act = Callable[[World, int, int], None]
ADAMS = ("Adam", "AdamW")
COUPLED = tuple(rule for rule in RULES if rule != "AdamW")
EPSILONS = tuple(rule for rule in RULES if "epsilon" in RULES[rule]) + ADAMS
SLOTTED = tuple(rule for rule in RULES if rule != "SGD")
CPU = paddle.CPUPlace()


@dataclass(frozen=True)
class Edit:
    """One edit.

    Args:
        act: does it.
        then: what the next step is: `"native"`, `"own"` (Paddle's own) or `"refused"`.
        rules: that it is for.
        groups: for optimizers with groups; without; None for both.
    """

    act: Act
    then: str = "native"
    rules: Collection[str] = tuple(RULES)
    groups: bool | None = None


EDITS: dict[str, Edit] = {}


def edit(**how: Any) -> Callable[[Act], Act]:
    def keep(act: Act) -> Act:
        EDITS[act.__name__] = Edit(act, **how)
        return act

    return keep


def whole(name: str, act: Act, **how: Any) -> None:
    EDITS[name] = Edit(act, **how)


def _lod(tensor: Any) -> Any:
    return tensor.get_tensor()


def _array(world: World, shape: tuple[int, ...], dtype: str = "") -> Any:
    return world.values(shape, dtype).numpy()


def _shaped(world: World, k: int) -> Any:
    return world.values(tuple(world.some(k).shape))


def _twin(world: World, i: int, k: int) -> tuple[Any, Any] | None:
    """Two parameters of one shape."""
    one, other = world.some(i), world.some(k)
    return (one, other) if one is not other and one.shape == other.shape else None


# -- memory of parameters --------------------------------------------------------------------------


@edit()
def nothing(world: World, i: int, k: int) -> None: ...


@edit()
def values_are_set(world: World, i: int, k: int) -> None:
    world.some(i).set_value(_shaped(world, i))


@edit()
def an_operation_in_place(world: World, i: int, k: int) -> None:
    with paddle.no_grad():
        world.some(i).scale_(0.5 + 0.25 * k)


@edit()
def memory_is_set(world: World, i: int, k: int) -> None:
    param = world.some(i)
    _lod(param).set(_array(world, tuple(param.shape)), CPU)


@edit()
def memory_is_given_up_and_set(world: World, i: int, k: int) -> None:
    param = world.some(i)
    shape = tuple(param.shape)
    param._clear_data()
    _lod(param).set(_array(world, shape), CPU)


@edit()
def memory_is_given_up(world: World, i: int, k: int) -> None:
    world.some(i)._clear_data()


@edit()
def memory_is_that_of_a_new_tensor(world: World, i: int, k: int) -> None:
    _shaped(world, i)._share_buffer_to(world.some(i))


@edit()
def a_new_tensor_takes_its_place(world: World, i: int, k: int) -> None:
    new, param = _shaped(world, i), world.some(i)
    new.stop_gradient = param.stop_gradient
    new._share_underline_tensor_to(param)


def _layer(param: Any) -> Any:
    param.clear_gradient(set_to_zero=False)  # Paddle ends the process over one that has rows only
    layer = paddle.nn.Layer()
    layer.add_parameter("weight", param)
    return layer


@edit()
def a_layer_goes_to_the_cpu(world: World, i: int, k: int) -> None:
    _layer(world.some(i)).to(device="cpu")


@edit()
def memory_is_a_part_of_a_larger_one(world: World, i: int, k: int) -> None:
    param = world.some(i)
    shape = tuple(param.shape)
    large = world.values((3 * shape[0], *shape[1:]))
    large._slice(shape[0], 2 * shape[0])._share_buffer_to(param)


@edit()
def memory_changes_hands(world: World, i: int, k: int) -> None:
    if pair := _twin(world, i, k):
        copies = [p.detach().clone() for p in pair]
        for param, copy in zip(pair, reversed(copies), strict=True):
            copy._share_buffer_to(param)


@edit(then="own")
def memory_is_shared_by_two(world: World, i: int, k: int) -> None:
    if pair := _twin(world, i, k):
        pair[0].detach()._share_buffer_to(pair[1])


@edit(then="own")
def memory_is_shared_in_part(world: World, i: int, k: int) -> None:
    if pair := _twin(world, i, k):
        rows = pair[0].shape[0]
        world.kept.append(large := world.values((2 * rows, *pair[0].shape[1:])))
        large._slice(0, rows)._share_buffer_to(pair[0])
        large._slice(1, rows + 1)._share_buffer_to(pair[1])


@edit(then="own")
def strides_are_swapped(world: World, i: int, k: int) -> None:
    param = world.some(i)
    if len(param.shape) == 2 and param.shape[0] == param.shape[1]:
        world.kept.append(turned := param.detach().transpose([1, 0]))
        _lod(param)._share_data_with(_lod(turned))


@edit(then="own")
def every_other_element_of_a_larger_one(world: World, i: int, k: int) -> None:
    param = world.some(i)
    world.kept.append(large := world.values((*param.shape[:-1], 2 * param.shape[-1])))
    world.kept.append(part := large[..., ::2])
    _lod(param)._share_data_with(_lod(part))


@edit(then="refused", rules=SLOTTED)
def reshaped_in_place(world: World, i: int, k: int) -> None:
    with paddle.no_grad():
        world.some(i).flatten_() if len(world.some(i).shape) > 1 else world.some(i).reshape_([5, 1])


@edit(then="refused", rules=SLOTTED)
def made_larger(world: World, i: int, k: int) -> None:
    shape = tuple(world.some(i).shape)
    _lod(world.some(i)).set(_array(world, (2 * shape[0], *shape[1:])), CPU)


@edit(then="refused", rules=SLOTTED)
def made_smaller(world: World, i: int, k: int) -> None:
    shape = tuple(world.some(i).shape)
    _lod(world.some(i)).set(_array(world, (1, *shape[1:])), CPU)


@edit(then="refused", rules=SLOTTED)
def shape_without_memory(world: World, i: int, k: int) -> None:
    world.kept.append(_array(world, (1,)))
    _lod(world.some(i))._set_dims([1000, 4])


@edit(then="refused", rules=SLOTTED)
def cast(world: World, i: int, k: int) -> None:
    other = "float32" if world.dtype == "float64" else "float64"
    with paddle.no_grad():
        world.some(i).cast_(other)


@edit(then="refused", rules=SLOTTED)
def a_layer_is_cast(world: World, i: int, k: int) -> None:
    _layer(world.some(i)).to(dtype="float32" if world.dtype == "float64" else "float64")


@edit(then="refused")
def numbers_become_integers(world: World, i: int, k: int) -> None:
    param = world.some(i)
    wide = "int64" if world.dtype == "float64" else "int32"
    _lod(param).set(np.ones(tuple(param.shape), wide), CPU)


@edit()
def another_name(world: World, i: int, k: int) -> None:
    world.some(i).name = f"renamed {world.some(i).name}"


@edit()
def names_change_hands(world: World, i: int, k: int) -> None:
    if pair := _twin(world, i, k):
        pair[0].name, pair[1].name = pair[1].name, pair[0].name


@edit()
def frozen_or_thawed(world: World, i: int, k: int) -> None:
    world.some(i).stop_gradient = not world.some(i).stop_gradient


@edit()
def a_rate_of_its_own(world: World, i: int, k: int) -> None:
    world.some(i).optimize_attr["learning_rate"] = 0.25 * (1 + k)


@edit(rules=COUPLED)
def a_decay_of_its_own(world: World, i: int, k: int) -> None:
    world.some(i).regularizer = paddle.regularizer.L2Decay(0.125 * k)


@edit(rules=COUPLED)
def a_decay_that_no_kernel_has(world: World, i: int, k: int) -> None:
    world.some(i).regularizer = paddle.regularizer.L1Decay(0.125 * k)


@edit()
def not_clipped(world: World, i: int, k: int) -> None:
    world.some(i).need_clip = not world.some(i).need_clip


# -- gradients -------------------------------------------------------------------------------------


def _gradient(name: str, make: Callable[[World, Any, Any], Any], **how: Any) -> None:
    def act(world: World, i: int, k: int) -> None:
        world.gradient = make

    whole(f"a_gradient_{name}".replace(" ", "_"), act, **how)


def _of_another_dtype(world: World, gradient: Any) -> Any:
    wide = str(gradient.dtype).endswith("float64")
    found = gradient.astype("float32" if wide else "float64")
    return found if world.ours else found.astype(gradient.dtype)  # Paddle's own refuses it


def _of_rows(world: World, param: Any, gradient: Any) -> Any:
    clips = [world.optimizer._grad_clip]
    if world.grouped:
        clips += [group.get("grad_clip") for group in world.groups]
    if any(clips):
        return gradient  # Paddle's own clips of rows end the process, not always
    param.clear_gradient(set_to_zero=False)
    param.grad = None
    rows = paddle.to_tensor([1, 2, 1])
    paddle.nn.functional.embedding(rows, param, sparse=True).sum().backward()
    return ...


_gradient("that is not there", lambda w, p, g: None)
_gradient("of zeros", lambda w, p, g: g * 0)
_gradient("with other strides", lambda w, p, g: g.transpose([1, 0]).contiguous().transpose([1, 0]))
_gradient("that is expanded", lambda w, p, g: paddle.as_strided(g, p.shape, [0, 1]))
_gradient("that is a part", lambda w, p, g: paddle.concat([g, g], axis=1)[:, 1 : 1 + g.shape[1]])
_gradient("that is the parameter", lambda w, p, g: p.detach())
_gradient("that is another parameter", lambda w, p, g: w.params[2].detach())
_gradient("of another dtype", lambda w, p, g: _of_another_dtype(w, g))
_gradient("of rows", _of_rows, rules=[rule for rule in RULES if rule not in ADAMS])
_gradient("of another shape", lambda w, p, g: g.reshape([-1]), then="refused")
_gradient("without elements", lambda w, p, g: g[:0], then="refused")


@edit()
def one_gradient_for_two(world: World, i: int, k: int) -> None:
    def share(world: World, param: Any, gradient: Any) -> Any:
        world.params[2].grad = gradient
        return gradient

    world.gradient = share


# -- accumulators ----------------------------------------------------------------------------------


def _of_slot(**how: Any) -> Callable[[Callable[[World, int, Any, dict[str, Any]], None]], Any]:
    def keep(act: Callable[[World, int, Any, dict[str, Any]], None]) -> Any:
        def of_world(world: World, i: int, k: int) -> None:
            if world.has_slot(i):
                act(world, i, world.slot(i), world.slots())

        whole(act.__name__, of_world, rules=SLOTTED, **how)
        return act

    return keep


@_of_slot()
def a_slot_is_set(world: World, i: int, slot: Any, slots: dict[str, Any]) -> None:
    slot.set_value(world.values(tuple(slot.shape)))


@_of_slot()
def memory_of_a_slot_is_set(world: World, i: int, slot: Any, slots: dict[str, Any]) -> None:
    _lod(slot).set(_array(world, tuple(slot.shape)), CPU)


@_of_slot()
def a_slot_is_replaced(world: World, i: int, slot: Any, slots: dict[str, Any]) -> None:
    slots[world.some(i).name] = world.values(tuple(slot.shape))


@_of_slot()
def a_slot_has_new_memory(world: World, i: int, slot: Any, slots: dict[str, Any]) -> None:
    world.values(tuple(slot.shape))._share_buffer_to(slot)


@_of_slot(then="own")
def a_slot_has_the_memory_of_its_parameter(
    world: World, i: int, slot: Any, slots: dict[str, Any]
) -> None:
    world.some(i).set_value(world.some(i).abs())
    world.some(i).detach()._share_buffer_to(slot)


@_of_slot(then="own")
def two_slots_share_memory(world: World, i: int, slot: Any, slots: dict[str, Any]) -> None:
    for other in slots.values():
        if other is not slot and other.shape == slot.shape:
            slot._share_buffer_to(other)
            return


@_of_slot(then="own")
def a_slot_is_strided(world: World, i: int, slot: Any, slots: dict[str, Any]) -> None:
    if len(slot.shape) == 2 and slot.shape[0] == slot.shape[1]:
        slots[world.some(i).name] = slot.transpose([1, 0])


@_of_slot()
def all_slots_are_copied(world: World, i: int, slot: Any, slots: dict[str, Any]) -> None:
    made: Any = defaultdict(dict)
    for name, held in world.optimizer._accumulators.items():
        made[name] = {param: tensor.clone() for param, tensor in held.items()}
    world.optimizer._accumulators = made


@_of_slot()
def slots_change_hands(world: World, i: int, slot: Any, slots: dict[str, Any]) -> None:
    mine = world.some(i).name
    for name, other in slots.items():
        if name != mine and other.shape == slot.shape:
            slots[mine], slots[name] = other, slot
            return


@_of_slot()
def all_slots_are_scaled_in_place(world: World, i: int, slot: Any, slots: dict[str, Any]) -> None:
    for other in slots.values():
        other.scale_(0.75)


@_of_slot()
def a_parameter_is_forgotten(world: World, i: int, slot: Any, slots: dict[str, Any]) -> None:
    for held in world.optimizer._accumulators.values():
        held.pop(world.some(i).name, None)
    world.optimizer._already_create_accumulator.discard(world.some(i).name)


@_of_slot()
def everything_is_forgotten(world: World, i: int, slot: Any, slots: dict[str, Any]) -> None:
    world.optimizer._accumulators.clear()
    world.optimizer._already_create_accumulator.clear()


@_of_slot(then="refused")
def a_slot_is_gone(world: World, i: int, slot: Any, slots: dict[str, Any]) -> None:
    del slots[world.some(i).name]


@_of_slot(then="refused")
def all_slots_are_gone(world: World, i: int, slot: Any, slots: dict[str, Any]) -> None:
    world.optimizer._accumulators.clear()


@_of_slot(then="refused")
def memory_of_a_slot_is_given_up(world: World, i: int, slot: Any, slots: dict[str, Any]) -> None:
    slot._clear_data()


@_of_slot(then="refused")
def a_slot_is_reshaped(world: World, i: int, slot: Any, slots: dict[str, Any]) -> None:
    slot.flatten_() if len(slot.shape) > 1 else slot.reshape_([5, 1])


@_of_slot(then="refused")
def a_slot_is_made_smaller(world: World, i: int, slot: Any, slots: dict[str, Any]) -> None:
    _lod(slot).set(_array(world, (1,)), CPU)


@_of_slot(then="refused")
def a_slot_is_replaced_by_a_larger(world: World, i: int, slot: Any, slots: dict[str, Any]) -> None:
    slots[world.some(i).name] = world.values((2 * slot.shape[0], *slot.shape[1:]))


@_of_slot(then="refused")
def a_slot_is_cast(world: World, i: int, slot: Any, slots: dict[str, Any]) -> None:
    slot.cast_("float32" if world.dtype == "float64" else "float64")


@_of_slot(then="refused")
def a_slot_becomes_integers(world: World, i: int, slot: Any, slots: dict[str, Any]) -> None:
    wide = "int64" if world.dtype == "float64" else "int32"
    _lod(slot).set(np.ones(tuple(slot.shape), wide), CPU)


# -- powers of the betas ---------------------------------------------------------------------------


def _powers(world: World, i: int) -> list[tuple[dict[str, Any], str, float]]:
    """Where the powers of a parameter are, by what name, and of which betas."""
    kept, name = world.optimizer._accumulators, world.some(i).name
    betas = {"beta1_pow_acc": 0.75, "beta2_pow_acc": 0.9375}
    return [(kept[p], name, beta) for p, beta in betas.items() if name in kept.get(p, ())]


@edit(rules=ADAMS)
def powers_of_a_count(world: World, i: int, k: int) -> None:
    for held, name, beta in _powers(world, i):
        held[name].set_value(paddle.full([1], beta ** (3 + k), world.dtype))


@edit(rules=ADAMS)
def powers_are_replaced(world: World, i: int, k: int) -> None:
    for held, name, beta in _powers(world, i):
        held[name] = paddle.full([1], beta ** (3 + k), world.dtype)


@edit(rules=ADAMS)
def powers_have_new_memory(world: World, i: int, k: int) -> None:
    for held, name, beta in _powers(world, i):
        paddle.full([1], beta ** (3 + k), world.dtype)._share_buffer_to(held[name])


@edit(rules=ADAMS)
def powers_without_axis(world: World, i: int, k: int) -> None:
    for held, name, _ in _powers(world, i):
        held[name].reshape_([])


@edit(rules=ADAMS, then="own")
def powers_of_no_count(world: World, i: int, k: int) -> None:
    for held, name, _ in _powers(world, i):
        held[name].set_value(paddle.full([1], 0.65 + k / 16, world.dtype))


@edit(rules=ADAMS, then="own")
def powers_of_two_counts(world: World, i: int, k: int) -> None:
    for held, name, beta in _powers(world, i)[:1]:
        held[name].set_value(paddle.full([1], beta**9, world.dtype))


@edit(rules=ADAMS, then="refused")
def powers_of_another_dtype(world: World, i: int, k: int) -> None:
    other = "float32" if world.dtype == "float64" else "float64"
    for held, name, beta in _powers(world, i):
        held[name] = paddle.full([1], beta**4, other)


# -- settings --------------------------------------------------------------------------------------


@edit(rules=ADAMS, then="own", groups=False)
def other_betas(world: World, i: int, k: int) -> None:
    world.optimizer._beta1, world.optimizer._beta2 = 0.5, 0.875


@edit(rules=ADAMS, then="own", groups=True)
def other_betas_of_a_group(world: World, i: int, k: int) -> None:
    world.groups[i % len(world.groups)]["beta1"] = 0.5


@edit(rules=EPSILONS, groups=False)
def another_epsilon(world: World, i: int, k: int) -> None:
    world.optimizer._epsilon = 0.0078125 * (1 + k)


@edit(rules=EPSILONS, groups=True)
def another_epsilon_of_a_group(world: World, i: int, k: int) -> None:
    world.groups[i % len(world.groups)]["epsilon"] = 0.0078125 * (1 + k)


@edit()
def another_rate(world: World, i: int, k: int) -> None:
    world.optimizer.set_lr(0.0625 * (1 + k))


@edit()
def a_scheduler(world: World, i: int, k: int) -> None:
    made = paddle.optimizer.lr.StepDecay(0.0625 * (1 + k), step_size=1 + i, gamma=0.5)
    world.optimizer.set_lr_scheduler(made)


@edit()
def the_scheduler_steps(world: World, i: int, k: int) -> None:
    scheduler = world.optimizer._learning_rate
    if isinstance(scheduler, paddle.optimizer.lr.LRScheduler):
        scheduler.step()


@edit(rules=["AdamW"])
def another_choice_of_what_decays(world: World, i: int, k: int) -> None:
    chosen = world.some(i).name
    world.optimizer._apply_decay_param_fun = lambda name: (name == chosen) == (k % 2 == 0)


@edit(groups=False)
def another_clip(world: World, i: int, k: int) -> None:
    bound = 0.25 * (1 + k)
    world.optimizer._grad_clip = (
        paddle.nn.ClipGradByNorm(bound),
        paddle.nn.ClipGradByValue(bound),
        paddle.nn.ClipGradByGlobalNorm(bound),
        paddle.nn.ClipGradByValue(bound, -0.125),  # that no kernel has
    )[k % 4]


@edit(groups=True)
def another_rate_of_a_group(world: World, i: int, k: int) -> None:
    for param in world.groups[i % len(world.groups)]["params"]:
        param.optimize_attr["learning_rate"] = 0.25 * (1 + k)


@edit(groups=True, rules=["AdamW"])
def another_decay_of_a_group(world: World, i: int, k: int) -> None:
    world.groups[i % len(world.groups)]["weight_decay"] = 0.125 * k


# -- lists and groups ------------------------------------------------------------------------------


@edit(groups=False)
def a_parameter_is_appended(world: World, i: int, k: int) -> None:
    world.params.append(world.parameter((3, 3)))
    world.listed.append(world.params[-1])


@edit(groups=False)
def a_parameter_is_removed(world: World, i: int, k: int) -> None:
    if len(world.listed) > 1:
        world.listed.pop(i % len(world.listed))


@edit(groups=False)
def a_parameter_is_replaced(world: World, i: int, k: int) -> None:
    world.params.append(world.parameter((3, 3)))
    world.listed[i % len(world.listed)] = world.params[-1]


@edit(groups=False)
def a_parameter_is_replaced_by_a_namesake(world: World, i: int, k: int) -> None:
    place = i % len(world.listed)
    old = world.listed[place]
    new = world.parameter(tuple(old.shape))
    new.name = old.name
    world.params.append(new)
    world.listed[place] = new


@edit(groups=False)
def parameters_are_reversed(world: World, i: int, k: int) -> None:
    world.listed.reverse()


@edit(groups=False)
def another_list(world: World, i: int, k: int) -> None:
    made = [p for p in world.listed if p is not world.some(i)] or world.params[:1]
    world.optimizer._parameter_list = world.optimizer._param_groups = made


@edit(groups=False, then="own")
def a_parameter_twice(world: World, i: int, k: int) -> None:
    world.listed.append(world.listed[i % len(world.listed)])


@edit(groups=True)
def a_group_is_popped(world: World, i: int, k: int) -> None:
    if len(world.groups) > 1:
        world.groups.pop(i % len(world.groups))


@edit(groups=True)
def groups_are_reversed(world: World, i: int, k: int) -> None:
    world.groups.reverse()


@edit(groups=True)
def groups_exchange_parameters(world: World, i: int, k: int) -> None:
    one, other = world.groups[i % len(world.groups)], world.groups[k % len(world.groups)]
    one["params"], other["params"] = other["params"], one["params"]


@edit(groups=True)
def a_parameter_changes_groups(world: World, i: int, k: int) -> None:
    one, other = world.groups[i % len(world.groups)], world.groups[k % len(world.groups)]
    if one is not other and len(one["params"]) > 1:
        other["params"].append(one["params"].pop(0))


@edit(groups=True)
def a_group_gets_a_parameter(world: World, i: int, k: int) -> None:
    world.params.append(world.parameter((3, 3)))
    world.groups[i % len(world.groups)]["params"].append(world.params[-1])


@edit(groups=True)
def a_parameter_of_a_group_is_replaced(world: World, i: int, k: int) -> None:
    params = world.groups[i % len(world.groups)]["params"]
    world.params.append(world.parameter((3, 3)))
    params[k % len(params)] = world.params[-1]


@edit(groups=True)
def a_group_loses_a_parameter(world: World, i: int, k: int) -> None:
    params = world.groups[i % len(world.groups)]["params"]
    if len(params) > 1:
        params.pop(k % len(params))


@edit(groups=True)
def a_group_like_another_is_appended(world: World, i: int, k: int) -> None:
    world.params.append(world.parameter((3, 3)))
    world.groups.append({**world.groups[0], "params": [world.params[-1]]})


@edit(groups=True)
def a_group_is_added(world: World, i: int, k: int) -> None:
    world.params.append(world.parameter((3, 3)))
    own = {"learning_rate": 0.25 * (1 + k), "weight_decay": 0.25, "grad_clip": None}
    world.optimizer._add_param_group({"params": [world.params[-1]], **own})


@edit(groups=True)
def groups_are_copied(world: World, i: int, k: int) -> None:
    copies = [{**group, "params": list(group["params"])} for group in world.groups]
    world.optimizer._param_groups = copies


@edit(groups=True)
def groups_are_no_more(world: World, i: int, k: int) -> None:
    if not world.ours:  # Paddle has left the settings of the last group in the optimizer
        vars(world.optimizer).update(world.settings)
    made = [p for group in world.groups for p in group["params"]]
    world.optimizer._parameter_list = world.optimizer._param_groups = made
    world.optimizer._grad_clip = None


@edit(groups=True, then="own")
def a_parameter_in_two_groups(world: World, i: int, k: int) -> None:
    world.groups[-1]["params"].append(world.groups[0]["params"][0])


# -- states ----------------------------------------------------------------------------------------


@edit()
def its_own_state_is_loaded(world: World, i: int, k: int) -> None:
    state = world.optimizer.state_dict()
    if state:
        world.optimizer.set_state_dict(state)
    if not world.ours:  # isostep gives what it loads memory of its own
        params = _stepped(world)
        for held in world.optimizer._accumulators.values():
            for name in held.keys() & params.keys():
                made = _as_made(held[name], params[name])
                made.name, held[name] = held[name].name, made


def _as_made(tensor: Any, param: Any) -> Any:
    """An accumulator of this value as Paddle makes one for a parameter."""
    return tensor.reshape(tensor.shape or [1]).astype(param.dtype).clone()


def _stepped(world: World) -> dict[str, Any]:
    """The parameters that the optimizer steps, by name."""
    held = [p for group in world.groups for p in group["params"]] if world.grouped else world.listed
    return {p.name: p for p in held}


def _state(world: World) -> Any:
    """A state that is the user's own: of isostep a state, of Paddle what is in it. Paddle numbers
    the keys of its states on, and does not find them again."""
    file = io.BytesIO()
    paddle.save(world.optimizer.state_dict(), file)
    if world.ours:
        file.seek(0)
        return paddle.load(file)
    names = _stepped(world)
    return {
        name: {param: tensor.clone() for param, tensor in held.items() if param in names}
        for name, held in world.optimizer._accumulators.items()
    }


def _load(world: World, optimizer: Any, state: Any) -> None:
    if world.ours:
        optimizer.set_state_dict(state)
        return
    params, made = _stepped(world), defaultdict[str, dict[str, Any]](dict)
    for name, held in state.items():
        made[name].update({p: _as_made(tensor, params[p]) for p, tensor in held.items()})
    optimizer._accumulators = made
    optimizer._already_create_accumulator = {p for held in made.values() for p in held}


@edit()
def a_state_is_saved(world: World, i: int, k: int) -> None:
    if world.slots():
        world.saved.append((sorted(_stepped(world)), _state(world)))


@edit()
def a_saved_state_is_loaded(world: World, i: int, k: int) -> None:
    fitting = [state for names, state in world.saved if names == sorted(_stepped(world))]
    if fitting:
        _load(world, world.optimizer, fitting[i % len(fitting)])


@edit()
def a_state_goes_through_a_file(world: World, i: int, k: int) -> None:
    if world.slots():
        _load(world, world.optimizer, _state(world))


# -- optimizers ------------------------------------------------------------------------------------


@edit()
def a_new_optimizer(world: World, i: int, k: int) -> None:
    world.optimizer = world.anew()


@edit()
def a_new_optimizer_with_its_state(world: World, i: int, k: int) -> None:
    made = world.anew()
    if world.slots():
        _load(world, made, _state(world))
    world.optimizer = made


@edit()
def a_copy_of_the_optimizer(world: World, i: int, k: int) -> None:
    world.optimizer = copy.copy(world.optimizer)


@edit()
def everything_is_copied(world: World, i: int, k: int) -> None:
    names = [p.name for p in world.params]
    world.optimizer.helper = None  # programs, of which there are no copies
    world.optimizer._learning_rate_map.clear()
    world.params, world.optimizer = copy.deepcopy((world.params, world.optimizer))
    for name, param in zip(names, world.params, strict=True):
        param.name = name  # Paddle gives copies names of their own, and finds nothing of them
