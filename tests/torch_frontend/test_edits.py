"""Whatever is done between two steps to parameters, gradients, state and groups: torch's numbers,
or a refusal that changes nothing and that ends with its cause."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

import isostep
from isostep.torch import SGD, Adam, AdamW, watch

from .twins import FULL, NAMES, Twins, assert_same_bits, bits, give, make_grads, make_params

OWN = ["torch.optim"]
SQUARES = ((4, 4), (3, 3), (2, 6, 6))


# -- tensors: every edit of what there is, of every tensor that a step touches ---------------------


def _in_memory(t: Tensor) -> None:
    t.data.mul_(0.5)


def _by_numpy(t: Tensor) -> None:
    array = t.detach().numpy()
    array *= 0.5


def _other_data(t: Tensor) -> None:
    t.data = t.data.clone() * 0.5


def _set(t: Tensor) -> None:
    with torch.no_grad():
        t.set_(t.detach().clone() * 0.5)


def _swapped(t: Tensor) -> None:
    other = t.detach().clone() * 0.5
    torch.utils.swap_tensors(t, nn.Parameter(other) if isinstance(t, nn.Parameter) else other)


def _shared(t: Tensor) -> None:
    t.share_memory_()


def _storage_resized(t: Tensor) -> None:
    t.untyped_storage().resize_(t.untyped_storage().nbytes() + 4096)


def _resized(t: Tensor) -> None:
    shape, values = t.shape, t.detach().clone()
    t.data.resize_(1000)
    t.data = t.data.new_zeros(7)
    t.data = values.reshape(shape)


def _transposed(t: Tensor) -> None:
    t.data = t.data.t() if t.ndim == 2 else t.data.transpose(-1, -2) if t.ndim > 2 else t.data


def _transposed_in_place(t: Tensor) -> None:
    if t.ndim >= 2:
        t.data.transpose_(-1, -2)
        t.data = t.data.contiguous()


def _laid_otherwise(t: Tensor) -> None:
    if t.ndim >= 2:
        t.data = t.data.transpose(-1, -2).contiguous().transpose(-1, -2)


def _moved_within(t: Tensor) -> None:
    wide = t.data.new_zeros(t.numel() + 3)
    t.data = wide[3:].view(t.shape).copy_(t.data)


def _strided(t: Tensor) -> None:
    wide = t.data.new_zeros((*t.shape, 2))
    t.data = wide[..., 0].copy_(t.data)


def _frozen(t: Tensor) -> None:
    t.requires_grad_(False)


def _to_the_device(t: Tensor) -> None:
    t.data = t.data.to("cpu", copy=True)


TENSOR_EDITS: list[Callable[[Tensor], None]] = [
    _in_memory,
    _by_numpy,
    _other_data,
    _set,
    _swapped,
    _shared,
    _storage_resized,
    _resized,
    _transposed,
    _transposed_in_place,
    _laid_otherwise,
    _moved_within,
    _strided,
    _frozen,
    _to_the_device,
]


def _params(o: Any, params: list[Any]) -> list[Tensor]:
    return params


def _grads(o: Any, params: list[Any]) -> list[Tensor]:
    return [p.grad for p in params]


def _slots(o: Any, params: list[Any]) -> list[Tensor]:
    return [v for p in params for k, v in o.state[p].items() if k != "step" and v is not None]


def _steps(o: Any, params: list[Any]) -> list[Tensor]:
    return [o.state[p]["step"] for p in params if "step" in o.state[p]]


def _count_up(t: Tensor) -> None:
    t.data.add_(2)


WHERE: dict[str, Callable[[Any, list[Any]], list[Tensor]]] = {
    "parameter": _params,
    "gradient": _grads,
    "slot": _slots,
    "step": _steps,
}


@pytest.mark.filterwarnings("ignore:Casting complex:UserWarning")
@pytest.mark.parametrize("name", ["SGD", "Adam", "Adadelta"])
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("edit", TENSOR_EDITS, ids=lambda e: e.__name__.strip("_"))
def test_a_tensor_is_edited(edit: Callable[[Tensor], None], where: str, name: str) -> None:
    if where == "gradient" and edit is _swapped:
        pytest.skip("torch swaps no gradients")
    twins = Twins(name, lambda: make_params(shapes=SQUARES), **FULL[name])
    twins.run(2)
    twins.give()
    for o, params in ((twins.a, twins.a_params), (twins.b, twins.b_params)):
        for tensor in WHERE[where](o, params)[::2]:
            if where == "step" and edit in (_in_memory, _by_numpy, _other_data, _set, _swapped):
                _count_up(tensor)  # half of a count is none
            edit(tensor)
    twins.largest.clear()
    twins.a.step()
    twins.b.step()
    twins.compare()
    twins.run(2)
    assert "native" in twins.b.ran[0]


@pytest.mark.parametrize("where", ["parameter", "gradient", "slot"])
@pytest.mark.parametrize("size", [0, 1])
def test_memory_that_is_gone_is_refused_until_it_is_back(where: str, size: int) -> None:
    params = make_params(shapes=SQUARES)
    optimizer = AdamW(params)
    give(params, make_grads(params, 0))
    optimizer.step()
    give(params, make_grads(params, 1))
    for tensor in WHERE[where](optimizer, params)[:1]:
        values, bytes_ = tensor.detach().clone(), tensor.untyped_storage().nbytes()
        tensor.untyped_storage().resize_(size * 8)
    others = [p.detach().clone() for p in params[1:]]
    with pytest.raises(ValueError, match=r"has .* of the 128 bytes"):
        optimizer.step()
    assert all(map(torch.equal, params[1:], others))
    tensor.untyped_storage().resize_(bytes_)
    tensor.data.copy_(values)
    optimizer.step()
    assert optimizer.state[params[0]]["step"] == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 2.5, 2.0**63])
def test_a_count_that_is_none_is_refused_wherever_it_is_written(value: float) -> None:
    params = make_params(shapes=SQUARES)
    optimizer = Adam(params)
    give(params, make_grads(params, 0))
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    before = bits(optimizer)
    good = optimizer.state[params[1]]["step"]
    saved["state"][1]["step"] = torch.tensor(value, dtype=torch.float64)
    with pytest.raises(isostep.StateError, match=r"entry 1 .*whole number in \[0, 2\^63 - 2\]"):
        optimizer.load_state_dict(saved)
    assert_same_bits(bits(optimizer), before)
    good.data.fill_(value)
    with pytest.raises(isostep.StateError, match=r"step count of parameter '1' is"):
        optimizer.step()
    assert_same_bits([p.detach() for p in params], [before[0], before[4], before[8]])
    good.fill_(1)
    optimizer.step()
    assert good == 2


# -- groups ----------------------------------------------------------------------------------------


def _replaced(o: Any, params: list[Any]) -> None:
    new = nn.Parameter(params[1].detach()[:2] * 2)
    o.param_groups[0]["params"][1] = params[1] = new


def _replaced_with_its_state(o: Any, params: list[Any]) -> None:
    new = nn.Parameter(params[1].detach().clone() * 2)
    o.state[new] = o.state.pop(params[1])
    o.param_groups[0]["params"][1] = params[1] = new


def _appended(o: Any, params: list[Any]) -> None:
    params.append(nn.Parameter(torch.ones(3, dtype=torch.float64)))
    o.param_groups[0]["params"].append(params[-1])


def _removed(o: Any, params: list[Any]) -> None:
    o.param_groups[0]["params"].pop(0)


def _reordered(o: Any, params: list[Any]) -> None:
    o.param_groups[0]["params"].reverse()
    o.param_groups.reverse()


def _exchanged(o: Any, params: list[Any]) -> None:
    first, second = o.param_groups
    first["params"][0], second["params"][0] = second["params"][0], first["params"][0]


def _across_the_border(o: Any, params: list[Any]) -> None:
    """The same parameters in the same order, one of them in another group."""
    o.param_groups[1]["params"].insert(0, o.param_groups[0]["params"].pop())


def _popped_group(o: Any, params: list[Any]) -> None:
    o.param_groups.pop(1)


def _group_put_in_by_hand(o: Any, params: list[Any]) -> None:
    params.append(nn.Parameter(torch.ones(3, dtype=torch.float64)))
    o.param_groups.append({**o.param_groups[0], "params": [params[-1]], "lr": 0.5})


def _iterator(o: Any, params: list[Any]) -> None:
    o.param_groups[0]["params"] = tuple(params[:2])


def _emptied(o: Any, params: list[Any]) -> None:
    o.param_groups[0]["params"] = []


def _in_both_groups(o: Any, params: list[Any]) -> None:
    o.param_groups[1]["params"].append(params[0])


GROUP_EDITS = [
    _replaced,
    _replaced_with_its_state,
    _appended,
    _removed,
    _reordered,
    _exchanged,
    _across_the_border,
    _popped_group,
    _group_put_in_by_hand,
    _iterator,
    _emptied,
    _in_both_groups,
]


def _two_groups(name: str) -> Twins:
    twins = Twins(name, lambda: make_params(shapes=SQUARES), **FULL[name])
    for o, params in ((twins.a, twins.a_params), (twins.b, twins.b_params)):
        o.param_groups[0]["params"] = params[:2]
        o.add_param_group({"params": params[2:], "lr": 0.01})
    return twins


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("edit", GROUP_EDITS, ids=lambda e: e.__name__.strip("_"))
def test_groups_are_edited(edit: Callable[[Any, list[Any]], None], name: str) -> None:
    if name == "Adagrad" and edit in (_replaced, _appended, _group_put_in_by_hand):
        pytest.skip("torch's Adagrad makes its state in the constructor, and fails")
    twins = _two_groups(name)
    twins.run(2)
    for o, params in ((twins.a, twins.a_params), (twins.b, twins.b_params)):
        edit(o, params)
    twins.largest.clear()
    for _ in range(3):
        twins.step()
    assert (twins.b.ran == OWN) == (edit is _in_both_groups)


def test_a_loop_over_sub_groups_steps_each_of_them() -> None:
    """As DeepSpeed's stage 3 does with an optimizer of the user's."""
    twins = Twins("AdamW", **FULL["AdamW"])
    for step in range(3):
        twins.give()
        for o, params in ((twins.a, twins.a_params), (twins.b, twins.b_params)):
            for p in params:
                o.param_groups[0]["params"] = [p]
                o.step()
                o.param_groups[0]["params"] = []
        twins.compare()
        assert twins.b.state[twins.b_params[0]]["step"] == step + 1


def test_a_group_that_lacks_a_number_is_refused_by_name_and_nothing_is_stepped() -> None:
    params = make_params()
    optimizer = AdamW(params[:3])
    optimizer.param_groups.append({"params": params[3:]})
    give(params, make_grads(params, 0))
    before = [p.detach().clone() for p in params]
    with pytest.raises(KeyError, match="lr"):
        optimizer.step()
    assert all(map(torch.equal, params, before))


# -- what kernels cannot work on -------------------------------------------------------------------


class Named(nn.Parameter):
    """A parameter of a user's own class."""


class Marked(Tensor):
    """A tensor of a user's own class."""


class Wrapped(Tensor):
    """A tensor without memory of its own: another one has it."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def bare(x: Any) -> Any:
            return x.inner if isinstance(x, Wrapped) else x

        args, kwargs = _pytree.tree_map(bare, (args, kwargs or {}))
        return func(*args, **kwargs)


@pytest.mark.parametrize("count", [1, 12])
@pytest.mark.parametrize("name", NAMES)
def test_subclasses_that_are_memory_and_no_more_are_stepped_by_kernels(
    name: str, count: int
) -> None:
    def make() -> list[Any]:
        return [Named(p.detach()) for p in make_params(shapes=[(3, 5)] * count)]

    twins = Twins(name, make, **FULL[name])
    for step in range(3):
        grads = [g.as_subclass(Marked) for g in make_grads(twins.a_params, step)]
        twins.step(grads)
        assert "native" in twins.b.ran[0]


GRADIENTS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "negative": (torch._neg_view, True),
    "imaginary": (lambda g: torch.complex(g * 0, -g).conj().imag, True),
    "zero": (lambda g: torch._efficientzerotensor(g.shape, dtype=g.dtype), True),
    "expanded": (lambda g: g.flatten()[0].expand(g.shape), True),
    "graph": (lambda g: g.clone().requires_grad_() * 2, True),
    "wrapper": (Wrapped, False),
}


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_any_kind(name: str, kind: str) -> None:
    make, by_kernels = GRADIENTS[kind]
    twins = Twins(name, lambda: make_params(shapes=[(3, 5)] * 9), **FULL[name])
    for step in range(3):
        for params in (twins.a_params, twins.b_params):
            grads = make_grads(params, step)
            for k, (p, g) in enumerate(zip(params, grads, strict=True)):
                p.grad = g if (k + step) % 3 else make(g)
        twins.a.step()
        twins.b.step()
        twins.compare()
        assert ("native" in twins.b.ran[0]) == by_kernels


def test_an_option_beside_a_wrapper_is_refused_by_name_and_nothing_is_changed() -> None:
    params = make_params()
    optimizer = AdamW(params, clip=isostep.Clip(global_norm=1.0))
    give(params, make_grads(params, 0))
    optimizer.step()
    before = bits(optimizer)
    params[1].grad = Wrapped(make_grads(params, 1)[1])
    with pytest.raises(isostep.HyperparameterError, match=r"clip: .*'1', a Wrapped.*own step"):
        optimizer.step()
    assert_same_bits(bits(optimizer), before)
    give(params, make_grads(params, 1))
    optimizer.step()
    assert "native" in optimizer.ran[0]


def test_a_gradient_in_the_memory_of_its_parameter_is_torchs_to_step() -> None:
    twins = Twins("AdamW", **FULL["AdamW"])
    twins.run(2)
    for params in (twins.a_params, twins.b_params):
        for p in params:
            p.grad = p.detach()
    twins.a.step()
    twins.b.step()
    twins.compare()
    assert twins.b.ran == OWN


def test_a_gradient_of_another_shape_with_as_many_elements_is_refused() -> None:
    params = make_params(shapes=[(4, 6)])
    optimizer = SGD(params)
    params[0].grad = make_grads(params, 0)[0]
    params[0].grad.data = params[0].grad.data.reshape(6, 4)
    before = params[0].detach().clone()
    with pytest.raises(isostep.GradientError, match=r"'0' has shape \(6, 4\)"):
        optimizer.step()
    assert torch.equal(params[0], before)


@pytest.mark.parametrize("slot", ["exp_avg", "step"])
def test_state_that_two_parameters_share_is_torchs_to_step(slot: str) -> None:
    twins = Twins("Adam", lambda: make_params(shapes=[(3,), (3,)]), **FULL["Adam"])
    twins.run(2)
    for o, (p, q) in ((twins.a, twins.a_params), (twins.b, twins.b_params)):
        o.state[p][slot] = o.state[q][slot]
    twins.largest.clear()
    twins.step()
    assert twins.b.ran == OWN


def test_a_traced_step_is_in_the_graph() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    p = nn.Parameter(torch.ones(3))
    optimizer = SGD([p], lr=0.5)

    def step(g: Tensor) -> Tensor:
        p.grad = g
        optimizer.step()
        return p.detach() + 0

    graph = make_fx(step)(torch.ones(3))
    assert optimizer.ran == OWN
    before = p.detach().clone()
    with torch.no_grad():
        graph(torch.full((3,), 2.0))
    assert torch.equal(p, before - 1.0)
    clipped = SGD([p], lr=0.5, clip=isostep.Clip(norm=1.0))
    optimizer = clipped
    with pytest.raises(isostep.HyperparameterError, match=r"clip: .*TorchDispatchMode"):
        make_fx(step)(torch.ones(3))


def test_under_inference_mode_the_state_is_good_for_later_steps() -> None:
    params, twin = make_params(), make_params()
    optimizer, usual = AdamW(params), AdamW(twin)
    for step in range(4):
        give(params, make_grads(params, step))
        give(twin, make_grads(twin, step))
        with torch.inference_mode(step < 2):
            optimizer.step()
        usual.step()
    assert_same_bits(bits(optimizer), bits(usual))
    assert optimizer.state_dict()["state"][0]["step"] == 4


# -- what was asked for stays ----------------------------------------------------------------------


def test_ratios_and_exclusions_outlive_a_state_of_torch() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    names = ["0.weight", "0.bias", "1.weight", "1.bias"]
    optimizer = AdamW(
        model.named_parameters(),
        lr=0.1,
        weight_decay=0.3,
        lr_ratio={"0.*": 0.01},
        exclude_from_weight_decay=["*.bias"],
    )
    others = [
        [nn.Parameter(torch.ones_like(p)) for p in g["params"]] for g in optimizer.param_groups
    ]
    source = torch.optim.AdamW([{"params": each} for each in others], lr=0.2, weight_decay=0.5)
    optimizer.load_state_dict(source.state_dict())
    found = {n: g for g in optimizer.param_groups for n in g["param_names"]}
    assert [found[n]["lr_ratio"] for n in names] == [0.01, 0.01, 1.0, 1.0]
    assert [found[n]["weight_decay"] for n in names] == [0.5, 0.0, 0.5, 0.0]
    assert {g["lr"] for g in optimizer.param_groups} == {0.2}


def test_ratios_exclusions_and_groups_reach_groups_that_are_added_later() -> None:
    first, later = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = AdamW(
        [(f"a.{n}", p) for n, p in first.named_parameters()],
        weight_decay=0.3,
        groups=[isostep.Group("*.weight", eps=0.5)],
        lr_ratio=lambda name: 0.5 if name.startswith("b.") else 1.0,
        exclude_from_weight_decay=["*.bias"],
    )
    added = {"params": [(f"b.{n}", p) for n, p in later.named_parameters()], "lr": 0.7}
    optimizer.add_param_group(added)
    found = {n: g for g in optimizer.param_groups for n in g["param_names"]}
    assert found["b.bias"]["weight_decay"] == 0.0
    assert found["b.weight"]["weight_decay"] == 0.3
    assert found["b.weight"]["eps"] == 0.5
    assert found["b.weight"]["lr_ratio"] == found["b.bias"]["lr_ratio"] == 0.5
    assert found["b.weight"]["lr"] == found["b.bias"]["lr"] == 0.7


@pytest.mark.parametrize("wish", [{"state_dtype": torch.float32}, {"master_weights": True}])
def test_dtypes_that_are_asked_for_outlive_a_state_that_has_others(wish: dict[str, Any]) -> None:
    params = make_params(torch.bfloat16)
    source = torch.optim.AdamW(params)
    give(params, make_grads(params, 0))
    source.step()
    optimizer = AdamW(params, **wish)
    optimizer.load_state_dict(source.state_dict())
    saved = source.state_dict()["state"][1]["exp_avg"]
    assert torch.equal(optimizer.state[params[1]]["exp_avg"], saved.float())
    optimizer.step()
    dtypes = {v.dtype for kept in optimizer.state.values() for v in kept.values()}
    assert dtypes == {torch.float32}


def test_a_default_device_is_not_that_of_the_state() -> None:
    with torch.device("meta"):
        p = nn.Parameter(torch.ones(2, device="cpu"))
        p.grad = torch.ones(2, device="cpu")
        optimizer = AdamW([p], lr=0.1, weight_decay=0.0)
        optimizer.step()
        optimizer.step()
    assert optimizer.state[p]["step"] == 2
    assert torch.allclose(p, torch.full((2,), 0.8))


def test_the_values_of_the_state_are_plain() -> None:
    params = make_params()
    optimizer = AdamW(params)
    give(params, make_grads(params, 0))
    optimizer.step()
    assert {type(kept) for kept in optimizer.state.values()} == {dict}
    raw = list(optimizer.state.values())
    assert len(_pytree.tree_leaves(raw)) == 3 * len(params)
    file = io.BytesIO()
    torch.save(raw, file)
    file.seek(0)
    assert_same_bits(torch.load(file, weights_only=True), raw)


# -- the look itself -------------------------------------------------------------------------------


@pytest.mark.parametrize("look", [watch.tensors, watch._asked], ids=["in memory", "asked"])
@pytest.mark.parametrize("edit", TENSOR_EDITS[2:], ids=lambda e: e.__name__.strip("_"))
@pytest.mark.parametrize("shape", [(3,), (4, 4), (1, 2, 1, 2, 1, 3, 3)])
def test_every_change_of_memory_is_seen(
    shape: tuple[int, ...], edit: Callable[[Tensor], None], look: Any
) -> None:
    tensors = [torch.ones(2), torch.ones(shape), torch.ones(())]
    same = look(tensors)
    assert same()
    tensors[1].add_(1)
    assert same()
    before = watch.facts(tensors[1])
    edit(tensors[1])
    assert same() == (watch.facts(tensors[1]) == before)
