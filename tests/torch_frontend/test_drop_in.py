"""What torch code expects of an optimizer: signatures, groups, hooks, copies, closures."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import itertools
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import isostep
import isostep.torch
from isostep.torch.drop_in import EXTRA_ARGUMENTS

from .twins import FULL, NAMES, Twins, assert_same_bits, bits, give, make_grads, make_params
from .twins import ours as made_by_us
from .twins import theirs as made_by_torch


def stepped(name: str, steps: int = 2, **arguments: Any) -> Any:
    params = make_params()
    optimizer = made_by_us(name)(params, **FULL[name], **arguments)
    for step in range(steps):
        give(params, make_grads(params, step))
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", NAMES)
class TestEveryClass:
    def test_signature_is_torchs_with_keyword_only_extras(self, name: str) -> None:
        torchs = list(inspect.signature(made_by_torch(name)).parameters.values())
        mine = list(inspect.signature(made_by_us(name)).parameters.values())
        assert mine[: len(torchs)] == torchs
        extras = mine[len(torchs) :]
        assert [p.name for p in extras] == list(EXTRA_ARGUMENTS)
        assert {p.kind for p in extras} == {inspect.Parameter.KEYWORD_ONLY}

    def test_positional_arguments_mean_what_they_mean_to_torch(self, name: str) -> None:
        positional = [
            p
            for p in inspect.signature(made_by_torch(name)).parameters.values()
            if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "params"
        ]
        values = [FULL[name].get(p.name, p.default) for p in positional]
        a = made_by_torch(name)(make_params(), *values).param_groups[0]
        b = made_by_us(name)(make_params(), *values).param_groups[0]
        assert {k: v for k, v in a.items() if k != "params"} == {
            k: v for k, v in b.items() if k != "params"
        }

    def test_is_accepted_where_torch_checks_for_its_class(self, name: str) -> None:
        optimizer = made_by_us(name)(make_params())
        assert isinstance(optimizer, made_by_torch(name))
        assert isinstance(optimizer, torch.optim.Optimizer)
        assert type(optimizer).__name__ == name
        assert getattr(isostep.torch, name) is type(optimizer)
        assert name in type(optimizer).__doc__

    def test_groups_and_defaults_have_torchs_keys_in_torchs_order(self, name: str) -> None:
        a, b = made_by_torch(name)(make_params()), made_by_us(name)(make_params())
        assert list(a.defaults.items()) == list(b.defaults.items())
        assert list(a.param_groups[0]) == list(b.param_groups[0])
        assert repr(a) == repr(b)

    def test_deepcopy_goes_on_by_itself(self, name: str) -> None:
        a = stepped(name)
        b = copy.deepcopy(a)
        before = bits(a)
        params = b.param_groups[0]["params"]
        give(params, make_grads(params, 5))
        b.step()
        assert_same_bits(bits(a), before)
        params = a.param_groups[0]["params"]
        give(params, make_grads(params, 5))
        a.step()
        assert_same_bits(bits(a), bits(b))

    def test_pickle_goes_on_bit_for_bit(self, name: str) -> None:
        a = stepped(name)
        b = pickle.loads(pickle.dumps(a))
        assert type(b) is type(a)
        for optimizer in (a, b):
            params = optimizer.param_groups[0]["params"]
            give(params, make_grads(params, 5))
            optimizer.step()
        assert_same_bits(bits(a), bits(b))

    def test_gradients_are_never_written(self, name: str) -> None:
        params = make_params()
        strided = torch.randn(7, 4, dtype=torch.float64).t()
        params.append(nn.Parameter(strided.contiguous()))
        clip = isostep.Clip(global_norm=0.1)
        optimizer = made_by_us(name)(params, **FULL[name], maximize=True, clip=clip)
        give(params, [*make_grads(params[:-1], 0), strided])
        before = [p.grad.clone() for p in params]
        versions = [p.grad._version for p in params]
        optimizer.step()
        assert_same_bits([p.grad for p in params], before)
        assert [p.grad._version for p in params] == versions

    def test_without_gradients_nothing_happens(self, name: str) -> None:
        optimizer = stepped(name)
        before = bits(optimizer)
        optimizer.zero_grad()
        assert optimizer.step() is None
        assert_same_bits(bits(optimizer), before)
        fresh = made_by_us(name)(make_params())
        fresh.step()
        assert_same_bits([p.data for p in fresh.param_groups[0]["params"]], make_params_data())

    def test_zero_gradients_mean_what_they_mean_to_torch(self, name: str) -> None:
        twins = Twins(name, **FULL[name])
        twins.run(2)
        for _ in range(3):
            twins.step([torch.zeros_like(p) for p in twins.a_params])

    def test_maximize_ascends_as_torch_does(self, name: str) -> None:
        Twins(name, **FULL[name], maximize=True).run(10)

    def test_each_hyperparameter_can_be_set_per_group(self, name: str) -> None:
        other = {k: v for k, v in FULL[name].items() if not isinstance(v, bool)}
        default = {k: v for k, v in FULL[name].items() if isinstance(v, bool)}
        a_params, b_params = make_params(), make_params()
        optimizers = [
            make(name)([{"params": p[:2], **other}, {"params": p[2:]}], **default)
            for make, p in ((made_by_torch, a_params), (made_by_us, b_params))
        ]
        twins = Twins(name)
        twins.a_params, twins.b_params = a_params, b_params
        twins.a, twins.b = optimizers
        twins.run(8)

    def test_old_values_that_a_graph_needs_are_guarded(self, name: str) -> None:
        params = make_params()
        optimizer = made_by_us(name)(params)
        loss = sum((p * p).sum() for p in params)
        give(params, make_grads(params, 0))
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_memory_is_freed_without_the_garbage_collector(self, name: str) -> None:
        gc.collect()
        gc.disable()
        try:
            optimizer = stepped(name)
            state = (
                weakref.ref(next(iter(optimizer.state.values()))["step"])
                if (name != "SGD")
                else weakref.ref(next(iter(optimizer.state.values()))["momentum_buffer"])
            )
            del optimizer
            assert state() is None
        finally:
            gc.enable()


def make_params_data() -> list[torch.Tensor]:
    return [p.data for p in make_params()]


def test_a_skipped_step_leaves_version_counters_alone() -> None:
    params = make_params()
    optimizer = made_by_us("AdamW")(params, nonfinite="skip")
    loss = sum((p * p).sum() for p in params)
    give(params, [g * float("nan") for g in make_grads(params, 0)])
    optimizer.step()
    loss.backward()
    assert optimizer.skipped == 1


def test_closure_is_run_with_gradients_and_its_loss_returned() -> None:
    params = make_params()
    optimizer = made_by_us("SGD")(params, lr=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum((p * p).sum() for p in params)
        loss.backward()
        return loss

    first = optimizer.step(closure)
    with torch.no_grad():
        second = optimizer.step(closure)
    assert second.item() < first.item()
    assert second.requires_grad


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool) -> None:
    optimizer = stepped("AdamW")
    optimizer.zero_grad(set_to_none)
    for p in optimizer.param_groups[0]["params"]:
        assert p.grad is None if set_to_none else not p.grad.any()
    twins = Twins("AdamW", **FULL["AdamW"])
    for _ in range(3):  # gradients that keep their memory from step to step
        twins.a.zero_grad(set_to_none)
        twins.b.zero_grad(set_to_none)
        for params in (twins.a_params, twins.b_params):
            sum((p**3).sum() for p in params).backward()
        twins.a.step()
        twins.b.step()
        twins.compare()


def test_add_param_group_mid_training() -> None:
    twins = Twins("AdamW", **FULL["AdamW"])
    twins.run(3)
    for optimizer, params in ((twins.a, twins.a_params), (twins.b, twins.b_params)):
        new = make_params(shapes=[(3, 3), (2,)], seed=9)
        optimizer.add_param_group({"params": new, "lr": 0.5, "weight_decay": 0.0})
        params.extend(new)
    twins.run(3)
    assert [len(g["params"]) for g in twins.b.param_groups] == [5, 2]


def test_named_parameters_are_kept() -> None:
    model = nn.Linear(3, 2)
    optimizer = made_by_us("AdamW")(model.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]
    assert [e.name for e in optimizer.plan().entries] == ["weight", "bias"]


def test_two_models_may_use_the_same_names() -> None:
    a, b = nn.Linear(3, 2).double(), nn.Linear(4, 5).double()
    named = [{"params": list(m.named_parameters())} for m in (a, b)]
    optimizer = made_by_us("AdamW")(named)
    for p in [*a.parameters(), *b.parameters()]:
        p.grad = torch.ones_like(p)
    optimizer.step()
    shapes = [optimizer.state[p]["exp_avg"].shape for p in [*a.parameters(), *b.parameters()]]
    assert shapes == [p.shape for p in [*a.parameters(), *b.parameters()]]


class TestHooks:
    def test_step_hooks_run_in_torchs_order(self) -> None:
        orders = []
        for make in (made_by_torch, made_by_us):
            params = make_params()
            optimizer = make("AdamW")(params)
            order: list[str] = []
            handles = [
                optimizer.register_step_post_hook(lambda *_, o=order: o.append("post 1")),
                optimizer.register_step_pre_hook(lambda *_, o=order: o.append("pre 1")),
                optimizer.register_step_pre_hook(lambda *_, o=order: o.append("pre 2")),
                register_optimizer_step_pre_hook(lambda *_, o=order: o.append("global pre")),
                register_optimizer_step_post_hook(lambda *_, o=order: o.append("global post")),
            ]
            optimizer.step()
            for handle in handles:
                handle.remove()
            optimizer.step()
            orders.append(order)
        assert orders[0] == orders[1]
        assert orders[0] == ["global pre", "pre 1", "pre 2", "post 1", "global post"]

    def test_a_pre_hook_may_change_the_arguments(self) -> None:
        params = make_params()
        optimizer = made_by_us("SGD")(params)
        calls: list[int] = []
        optimizer.register_step_pre_hook(lambda o, a, k: ((o, lambda: calls.append(1)), {}))
        optimizer.step()
        assert calls == [1]

    def test_state_dict_hooks_run_in_torchs_order(self) -> None:
        orders = []
        for make in (made_by_torch, made_by_us):
            optimizer = make("AdamW")(make_params())
            order: list[Any] = []
            for name, kind in itertools.product(("a", "b"), ("state_dict", "load_state_dict")):
                for when in ("pre", "post"):
                    register = getattr(optimizer, f"register_{kind}_{when}_hook")
                    register(
                        lambda *_, o=order, x=(name, kind, when): o.append(x), prepend=name == "b"
                    )
            optimizer.load_state_dict(optimizer.state_dict())
            orders.append(order)
        assert orders[0] == orders[1]
        assert [x[0] for x in orders[0]] == ["b", "a"] * 4

    def test_what_a_load_hook_returns_is_loaded(self) -> None:
        source = stepped("AdamW", state_dtype="float32")
        target = made_by_us("AdamW")(make_params())
        target.register_load_state_dict_pre_hook(lambda *_: source.state_dict())
        seen: list[Any] = []
        target.register_load_state_dict_post_hook(
            lambda o: seen.extend(kept["exp_avg"].dtype for kept in o.state.values())
        )
        target.load_state_dict(made_by_us("AdamW")(make_params()).state_dict())
        assert set(seen) == {torch.float32}

    def test_a_state_dict_hook_may_replace_the_state(self) -> None:
        optimizer = stepped("AdamW")
        optimizer.register_state_dict_post_hook(lambda _, state: {"wrapped": state})
        assert list(optimizer.state_dict()) == ["wrapped"]


class TestImpossibleWishes:
    def test_differentiable_with_clip(self) -> None:
        with pytest.raises(isostep.HyperparameterError, match="differentiable"):
            made_by_us("SGD")(
                make_params(), differentiable=True, clip=isostep.Clip(global_norm=1.0)
            )

    @pytest.mark.parametrize("wish", ["foreach", "fused"])
    def test_foreach_and_fused_are_taken_as_wishes_for_speed(self, wish: str) -> None:
        Twins("AdamW", mine={wish: True}, **FULL["AdamW"]).run(2)

    @pytest.mark.parametrize("name", ["SGD", "Adagrad", "Adam", "AdamW"])
    def test_fused_is_refused_where_torch_has_no_fused_kernel(self, name: str) -> None:
        for classes in (made_by_torch, made_by_us):
            params = make_params(torch.complex128)
            optimizer = classes(name)(params, fused=True)
            give(params, make_grads(params, 0))
            with pytest.raises(RuntimeError, match=r"fused=True.* floating point Tensors"):
                optimizer.step()

    @pytest.mark.parametrize("name", NAMES)
    def test_a_model_that_is_made_on_the_meta_device_and_filled_later(self, name: str) -> None:
        """State that was made beside it has no values: it begins anew."""
        with torch.device("meta"):
            model = nn.Linear(3, 2, dtype=torch.float64)
        optimizer = made_by_us(name)(model.parameters(), **FULL[name])
        optimizer.step()
        torch.__future__.set_swap_module_params_on_conversion(True)  # else they are other objects
        try:
            model.to_empty(device="cpu")
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)
        twins = Twins(name, lambda: make_params(shapes=[(2, 3), (2,)]), **FULL[name])
        params = list(model.parameters())
        with torch.no_grad():
            for p, start in zip(params, twins.a_params, strict=True):
                p.copy_(start)
        for step in range(2):
            give(params, make_grads(params, step))
            optimizer.step()
            twins.step()
        assert all(torch.equal(p, q) for p, q in zip(params, twins.b_params, strict=True))

    def test_fused_and_differentiable_contradict_each_other(self) -> None:
        with pytest.raises(RuntimeError, match="differentiable"):
            made_by_us("Adam")(make_params(), fused=True, differentiable=True)

    @pytest.mark.parametrize(
        ("extra", "error", "message"),
        [
            ({"clip": 1.0}, isostep.HyperparameterError, "not a Clip"),
            ({"ema": 1.5}, isostep.HyperparameterError, "momentum"),
            ({"decay": "both"}, isostep.HyperparameterError, "decay"),
            ({"nonfinite": "ignore"}, isostep.HyperparameterError, "nonfinite"),
            ({"dialect": "kerras"}, isostep.UnknownNameError, "keras"),
            ({"state_dtype": "int8"}, isostep.HyperparameterError, "state_dtype"),
            ({"state_dtype": {"exp_ag": "float32"}}, isostep.UnknownNameError, "exp_avg"),
            ({"groups": [{"match": "*", "wd": 0}]}, isostep.UnknownNameError, "wd"),
            ({"groups": [{"match": "*", "lr": 0.1}]}, isostep.ParameterError, "named_parameters"),
            ({"lr_ratio": {"*": 0.5}}, isostep.ParameterError, "named_parameters"),
            ({"lazy": True, "clip": isostep.Clip(norm=1.0)}, isostep.HyperparameterError, "lazy"),
            ({"momentun": 0.9}, TypeError, "momentun"),
        ],
    )
    def test_extras_are_checked_at_construction(
        self, extra: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            made_by_us("AdamW")(make_params(), **extra)

    def test_an_expanded_parameter_is_refused(self) -> None:
        p = torch.ones(1).expand(4).requires_grad_()
        optimizer = made_by_us("SGD")([p])
        p.grad = torch.ones(4)
        with pytest.raises(isostep.ParameterError, match="expanded"):
            optimizer.step()

    def test_an_integer_parameter_is_refused(self) -> None:
        p = torch.ones(4, dtype=torch.int64)
        optimizer = made_by_us("SGD")([p])
        p.grad = torch.ones(4, dtype=torch.int64)
        with pytest.raises(isostep.ParameterError, match="int64"):
            optimizer.step()


def test_a_users_subclass_keeps_its_own_step_and_hooks() -> None:
    class Mine(isostep.torch.AdamW):
        def step(self, closure: Any = None) -> Any:
            self.count = getattr(self, "count", 0) + 1
            return super().step(closure)

    params = make_params()
    optimizer = Mine(params, lr=0.01)
    hooked: list[int] = []
    optimizer.register_step_post_hook(lambda *_: hooked.append(1))
    give(params, make_grads(params, 0))
    optimizer.step()
    assert optimizer.count == 1
    assert len(hooked) >= 1


def test_an_optimizer_can_be_saved_whole() -> None:
    optimizer = stepped("AdamW", ema=0.9, report=True)
    file = io.BytesIO()
    torch.save(optimizer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert_same_bits(bits(loaded), bits(optimizer))
    assert loaded.report is None
