"""State that is torch's state: layout, checkpoints in both directions, what loading keeps."""

from __future__ import annotations

import copy
import io
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import isostep
from isostep.torch import AdamW

from .twins import (
    FULL,
    NAMES,
    Twins,
    assert_same_bits,
    bits,
    give,
    make_grads,
    make_params,
    ours,
    theirs,
)


def layout(state_dict: dict[str, Any]) -> Any:
    """Keys, shapes, strides and dtypes; the hyperparameters as they are."""
    state = {
        k: {
            name: (tuple(v.shape), v.dtype, v.stride(), v.device.type)
            for name, v in kept.items()
            if v is not None
        }
        for k, kept in state_dict["state"].items()
    }
    return {**state_dict, "state": {k: kept for k, kept in state.items() if kept}}


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def after(make: Any, name: str, steps: int, **arguments: Any) -> Any:
    params = make_params()
    optimizer = make(name)(params, **FULL[name], **arguments)
    for step in range(steps):
        give(params, make_grads(params, step))
        optimizer.step()
    return optimizer


def _remade(state: dict[str, Any], fresh: dict[str, Any]) -> None:
    state.clear()
    for key, value in fresh.items():
        state.setdefault(key, value)


def _popped(state: dict[str, Any], fresh: dict[str, Any]) -> None:
    for key in list(state):
        state.pop(key)
    state.update(fresh)


def _popped_items(state: dict[str, Any], fresh: dict[str, Any]) -> None:
    while state:
        state.popitem()
    state |= fresh


def _deleted(state: dict[str, Any], fresh: dict[str, Any]) -> None:
    del state["exp_avg"]
    state["exp_avg"] = fresh["exp_avg"]


DICT_EDITS: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    "setitem": lambda state, fresh: state.__setitem__("exp_avg", fresh["exp_avg"]),
    "update": lambda state, fresh: state.update(fresh),
    "ior": lambda state, fresh: state.__ior__(fresh) and None,
    "clear, setdefault": _remade,
    "pop": _popped,
    "popitem": _popped_items,
    "del": _deleted,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [0, 1, 7])
class TestCheckpoints:
    def test_layout_is_torchs(self, name: str, steps: int) -> None:
        a, b = after(theirs, name, steps), after(ours, name, steps)
        assert layout(a.state_dict()) == layout(b.state_dict())

    @pytest.mark.parametrize("back", [False, True])
    def test_the_other_goes_on(self, name: str, steps: int, back: bool) -> None:
        """torch's checkpoint in isostep, and isostep's in torch, beside a run of torch alone."""
        twins = Twins(name, **FULL[name])
        twins.run(steps)
        twins.b = (theirs if back else ours)(name)(twins.b_params)
        source = after(ours, name, steps) if back else twins.a
        twins.b.load_state_dict(through_a_file(source.state_dict()))
        twins.run(5)

    def test_resuming_gives_the_same_bits(self, name: str, steps: int) -> None:
        straight = after(ours, name, steps + 3)
        stopped = after(ours, name, steps)
        params = [nn.Parameter(p.detach().clone()) for p in stopped.param_groups[0]["params"]]
        resumed = ours(name)(params)
        resumed.load_state_dict(through_a_file(stopped.state_dict()))
        for step in range(steps, steps + 3):
            give(params, make_grads(params, step))
            resumed.step()
        assert_same_bits(bits(resumed), bits(straight))


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_is_the_same_twice_and_loading_it_changes_nothing(name: str) -> None:
    optimizer = after(ours, name, 3)
    first = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(optimizer.state_dict())
    assert_same_bits(optimizer.state_dict(), first)


@pytest.mark.parametrize("name", ["AdamW", "Adafactor", "SGD", "RMSprop"])
def test_loading_never_changes_the_dtype_of_state(name: str) -> None:
    wide = {"state_dtype": "float32"}
    params = make_params(torch.bfloat16)
    source = ours(name)(params, **FULL[name], **wide)
    give(params, make_grads(params, 0))
    source.step()
    kept = [{k: v.dtype for k, v in source.state[p].items()} for p in params]
    assert {d for each in kept for d in each.values()} <= {torch.float32, torch.bfloat16}
    assert any(d == torch.float32 for each in kept for k, d in each.items() if k != "step")
    fresh = make_params(torch.bfloat16)
    target = ours(name)(fresh)
    target.load_state_dict(through_a_file(source.state_dict()))
    for p, q in zip(params, fresh, strict=True):
        assert_same_bits(dict(source.state[p]), dict(target.state[q]))
    give(fresh, make_grads(fresh, 1))
    target.step()
    assert [{k: v.dtype for k, v in target.state[p].items()} for p in fresh] == kept


@pytest.mark.parametrize("name", [n for n in NAMES if n != "SGD"])
def test_old_checkpoints_whose_step_is_a_number_go_on(name: str) -> None:
    twins = Twins(name, **FULL[name])
    twins.run(3)
    old = copy.deepcopy(twins.a.state_dict())
    for kept in old["state"].values():
        kept["step"] = int(kept["step"])
    twins.b = ours(name)(twins.b_params)
    twins.b.load_state_dict(old)
    twins.run(3)


def test_the_step_count_goes_on_where_float32_ends() -> None:
    params = make_params(shapes=[(3,)])
    optimizer = AdamW(params)
    give(params, make_grads(params, 0))
    optimizer.step()
    optimizer.state[params[0]]["step"].fill_(2.0**24)
    for _ in range(6):
        optimizer.step()
    assert optimizer.state[params[0]]["step"].item() == 2**24 + 6
    assert optimizer.state[params[0]]["step"].dtype == torch.float32


def test_step_is_float64_under_that_default_as_in_torch() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        a, b = after(theirs, "Adam", 2), after(ours, "Adam", 2)
        assert layout(a.state_dict()) == layout(b.state_dict())
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_state_of_another_shape_is_refused_by_name() -> None:
    source = after(ours, "AdamW", 1)
    model = nn.Sequential(*[nn.ParameterList(make_params(shapes=[(2,)] * 5))])
    target = AdamW(model.named_parameters())
    target.load_state_dict(source.state_dict())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(isostep.StateError, match=r"'0\.0' has shape"):
        target.step()


def test_other_numbers_of_parameters_are_refused_as_torch_does() -> None:
    source = after(ours, "AdamW", 1)
    with pytest.raises(ValueError, match="doesn't match the size"):
        AdamW(make_params(shapes=[(2,)])).load_state_dict(source.state_dict())


def test_states_with_and_without_names_load_into_each_other() -> None:
    params = make_params()
    named = AdamW([(f"p{k}", p) for k, p in enumerate(params)], lr=0.1)
    give(params, make_grads(params, 0))
    named.step()
    plain = AdamW(make_params())
    plain.load_state_dict(named.state_dict())
    assert plain.param_groups[0]["param_names"] == [f"p{k}" for k in range(5)]
    unnamed = after(ours, "AdamW", 1)
    named.load_state_dict(unnamed.state_dict())
    assert named.param_groups[0]["param_names"] == [f"p{k}" for k in range(5)]


def test_hyperparameters_of_the_checkpoint_replace_the_live_ones() -> None:
    source = AdamW(make_params(), lr=0.25, betas=(0.5, 0.6))
    target = AdamW(make_params(), lr=0.1)
    target.load_state_dict(source.state_dict())
    assert target.param_groups[0]["lr"] == 0.25
    assert target.param_groups[0]["betas"] == (0.5, 0.6)


def test_a_fused_torch_checkpoint_goes_on() -> None:
    twins = Twins("AdamW", **FULL["AdamW"])
    twins.a = torch.optim.AdamW(twins.a_params, fused=True, **FULL["AdamW"])
    twins.run(3)
    twins.b = AdamW(twins.b_params)
    twins.b.load_state_dict(through_a_file(twins.a.state_dict()))
    twins.run(3)


class TestEditsByHand:
    """What torch code does to `optimizer.state`, which torch reads in each step."""

    def twins(self) -> Twins:
        twins = Twins("AdamW", **FULL["AdamW"])
        twins.run(3)
        return twins

    def test_a_slot_written_in_place(self) -> None:
        twins = self.twins()
        for o, p in ((twins.a, twins.a_params[2]), (twins.b, twins.b_params[2])):
            o.state[p]["exp_avg"].mul_(0.5)
        twins.run(2)

    def test_a_slot_replaced(self) -> None:
        twins = self.twins()
        for o, p in ((twins.a, twins.a_params[2]), (twins.b, twins.b_params[2])):
            o.state[p]["exp_avg"] = torch.ones_like(p)
        twins.run(2)

    def test_a_slot_replaced_by_one_of_another_order_of_memory(self) -> None:
        twins = self.twins()
        for o, p in ((twins.a, twins.a_params[2]), (twins.b, twins.b_params[2])):
            o.state[p]["exp_avg"] = torch.linspace(0, 1, 24, dtype=p.dtype).reshape(6, 4).t()
        twins.run(2)

    @pytest.mark.parametrize("how", list(DICT_EDITS))
    def test_a_slot_edited_in_every_way_of_dicts(self, how: str) -> None:
        twins = self.twins()
        for o, p in ((twins.a, twins.a_params[2]), (twins.b, twins.b_params[2])):
            fresh = {**o.state[p], "exp_avg": torch.ones_like(p)}
            DICT_EDITS[how](o.state[p], fresh)
            assert set(o.state[p]) == set(fresh)
        twins.run(2)

    @pytest.mark.parametrize("in_place", [False, True])
    def test_the_step_count(self, in_place: bool) -> None:
        twins = self.twins()
        for o, p in ((twins.a, twins.a_params[2]), (twins.b, twins.b_params[2])):
            if in_place:
                o.state[p]["step"].fill_(50.0)
            else:
                o.state[p]["step"] = torch.tensor(50.0)
        twins.run(2)

    def test_the_state_of_one_parameter_dropped(self) -> None:
        twins = self.twins()
        for o, p in ((twins.a, twins.a_params[2]), (twins.b, twins.b_params[2])):
            del o.state[p]
        twins.run(2)

    @pytest.mark.parametrize("how", ["cleared", "replaced"])
    def test_the_whole_state_dropped(self, how: str) -> None:
        twins = self.twins()
        for o in (twins.a, twins.b):
            if how == "cleared":
                o.state.clear()
            else:
                o.state = defaultdict(dict)
        twins.largest.clear()
        twins.run(2)

    def test_keys_of_the_users_own_are_left_alone(self) -> None:
        twins = self.twins()
        for step in range(3):
            twins.b.state[twins.b_params[0]]["mine"] = torch.tensor(float(step))
            twins.step()
        assert twins.b.state[twins.b_params[0]]["mine"] == 2.0

    def test_groups_replaced(self) -> None:
        twins = self.twins()
        for o in (twins.a, twins.b):
            o.param_groups = [{**o.param_groups[0], "lr": 0.5}]
        twins.run(2)


def test_adagrad_shares_its_memory_as_torchs_does() -> None:
    twins = Twins("Adagrad", **FULL["Adagrad"])
    twins.run(2)
    twins.b.share_memory()
    assert all(kept["sum"].is_shared() for kept in twins.b.state.values())
    twins.run(2)


def test_sparse_momentum_of_a_torch_checkpoint_goes_on_dense() -> None:
    def embedding() -> list[nn.Parameter]:
        return make_params(shapes=[(5, 3)])

    def gradient(step: int) -> list[Tensor]:
        rows = torch.tensor([[0, 2, 2]])
        values = torch.full((3, 3), 0.1 * (step + 1), dtype=torch.float64)
        return [torch.sparse_coo_tensor(rows, values, (5, 3), check_invariants=False)]

    twins = Twins("SGD", embedding, lr=0.1, momentum=0.9)
    for step in range(2):
        give_sparse(twins.a_params, gradient(step))
        twins.a.step()
    twins.b_params[0].data.copy_(twins.a_params[0].data)
    twins.b.load_state_dict(copy.deepcopy(twins.a.state_dict()))
    assert twins.a.state[twins.a_params[0]]["momentum_buffer"].is_sparse
    for step in range(2, 4):
        for o, params in ((twins.a, twins.a_params), (twins.b, twins.b_params)):
            give_sparse(params, gradient(step))
            o.step()
        twins.compare()


def give_sparse(params: list[nn.Parameter], grads: list[Tensor]) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()


def test_momentum_starts_undampened_for_a_parameter_loaded_without_a_buffer() -> None:
    twins = Twins("SGD", **FULL["SGD"])
    grads = make_grads(twins.a_params, 0)
    twins.step([*grads[:2], None, *grads[3:]])
    twins.b.load_state_dict(copy.deepcopy(twins.a.state_dict()))
    twins.run(3)
