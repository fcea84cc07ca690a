"""What torch.optim does not have: in the step, and through a checkpoint bit for bit."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import isostep
from isostep import Group
from isostep.numpy import Optimizer
from isostep.torch import SGD, AdamW

from .twins import FULL, NAMES, Twins, assert_same_bits, bits, give, make_grads, make_params, ours


class Twice(nn.Module):
    """A model with names worth grouping by."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(3, 4, dtype=dtype)
        self.norm = nn.LayerNorm(4, dtype=dtype)
        self.head = nn.Linear(4, 2, dtype=dtype)


def by_hand(model: nn.Module, step: int) -> None:
    params = list(model.parameters())
    give(params, make_grads(params, step))


class TestClip:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("kind", ["value", "norm", "global_norm"])
    def test_is_what_torchs_function_does_before_the_step(self, name: str, kind: str) -> None:
        bound = {"value": 0.3, "norm": 0.9, "global_norm": 2.5}[kind]
        twins = Twins(name, mine={"clip": isostep.Clip(**{kind: bound})}, **FULL[name])
        for _ in range(6):
            twins.give()
            if kind == "value":
                nn.utils.clip_grad_value_(twins.a_params, bound)
            elif kind == "norm":
                for p in twins.a_params:
                    nn.utils.clip_grad_norm_(p, bound)
            else:
                assert nn.utils.clip_grad_norm_(twins.a_params, bound) > bound
            twins.a.step()
            twins.b.step()
            twins.compare()

    def test_one_norm_over_all_groups_and_dtypes(self) -> None:
        def make() -> list[nn.Parameter]:
            return make_params(torch.float64) + make_params(torch.float32, seed=3)

        twins = Twins("SGD", make, mine={"clip": isostep.Clip(global_norm=1.0)}, lr=0.1)
        for o in (twins.a, twins.b):
            o.add_param_group({"params": make_params(seed=7), "lr": 0.5})
        a, b = twins.a.param_groups[1]["params"], twins.b.param_groups[1]["params"]
        twins.give()
        for p, q, g in zip(a, b, make_grads(a, 9), strict=True):
            p.grad, q.grad = g, g.clone()
        nn.utils.clip_grad_norm_(twins.a_params + a, 1.0)
        twins.a.step()
        twins.b.step()
        twins.compare(tolerance=2.0**-23)  # of the float32 parameters
        for p, q in zip(a, b, strict=True):
            assert torch.allclose(p, q, rtol=2.0**-23)


class TestAverage:
    @pytest.mark.parametrize("name", NAMES)
    def test_is_torchs_averaged_model(self, name: str) -> None:
        models = [Twice(), Twice()]
        reference = AveragedModel(models[0], multi_avg_fn=get_ema_multi_avg_fn(0.8))
        a = getattr(torch.optim, name)(models[0].parameters(), **FULL[name])
        b = ours(name)(models[1].parameters(), **FULL[name], ema=0.8)
        for step in range(10):
            for model in models:
                by_hand(model, step)
                if step < 4:
                    model.norm.bias.grad = None  # averaged all the same
            a.step()
            b.step()
            reference.update_parameters(models[0])
        with b.averaged_params():
            for p, q in zip(reference.module.parameters(), models[1].parameters(), strict=True):
                assert torch.allclose(p, q, rtol=1e-12, atol=1e-14)
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert torch.allclose(p, q, rtol=1e-12, atol=1e-14)

    def test_is_put_back_bit_for_bit_also_after_an_exception(self) -> None:
        params = make_params()
        optimizer = AdamW(params, lr=0.1, ema=0.5)
        for step in range(3):
            give(params, make_grads(params, step))
            optimizer.step()
        before = bits(optimizer)
        inside = None

        def body() -> None:
            with optimizer.averaged_params():
                nonlocal inside
                inside = [p.detach().clone() for p in params]
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            body()
        assert_same_bits(bits(optimizer), before)
        assert_same_bits(inside, [optimizer.state[p]["average"] for p in params])

    def test_without_ema_there_is_none(self) -> None:
        optimizer = AdamW(make_params())
        with pytest.raises(isostep.HyperparameterError, match="ema="), optimizer.averaged_params():
            pass

    def test_starts_where_it_is_told_to(self) -> None:
        params = make_params(shapes=[(4,)])
        start = params[0].detach().clone()
        optimizer = SGD(params, lr=0.1, ema=isostep.EMA(0.75, start="initial"))
        give(params, make_grads(params, 0))
        optimizer.step()
        wanted = 0.75 * start + 0.25 * params[0].detach()
        assert torch.allclose(optimizer.state[params[0]]["average"], wanted, rtol=1e-15)


class TestGroups:
    def test_patterns_set_hyperparameters_and_the_rest_keeps_the_default(self) -> None:
        model = Twice()
        optimizer = AdamW(
            model.named_parameters(),
            lr=0.1,
            groups=[
                isostep.Group("*.bias", weight_decay=0.0),
                {"match": "re:^head", "lr": 0.5, "betas": (0.5, 0.6)},
            ],
        )
        found = {
            name: (group["lr"], group["weight_decay"], group["betas"])
            for group in optimizer.param_groups
            for name in group["param_names"]
        }
        assert found == {
            "embed.weight": (0.1, 0.01, (0.9, 0.999)),
            "embed.bias": (0.1, 0.0, (0.9, 0.999)),
            "norm.weight": (0.1, 0.01, (0.9, 0.999)),
            "norm.bias": (0.1, 0.0, (0.9, 0.999)),
            "head.weight": (0.5, 0.01, (0.5, 0.6)),
            "head.bias": (0.1, 0.0, (0.9, 0.999)),
        }

    def test_equals_the_groups_written_out_for_torch(self) -> None:
        a, b = Twice(), Twice()
        matrices = [p for p in a.parameters() if p.ndim > 1]
        others = [p for p in a.parameters() if p.ndim < 2]
        reference = torch.optim.AdamW(
            [{"params": matrices}, {"params": others, "weight_decay": 0.0}], lr=0.1
        )
        optimizer = AdamW(
            b.named_parameters(), lr=0.1, exclude_from_weight_decay=["*.bias", "norm.*"]
        )
        for step in range(5):
            by_hand(a, step)
            by_hand(b, step)
            reference.step()
            optimizer.step()
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            assert torch.allclose(p, q, rtol=1e-13, atol=1e-15)

    def test_a_pattern_that_matches_nothing_is_refused(self) -> None:
        with pytest.raises(isostep.UnknownNameError, match="bais"):
            AdamW(Twice().named_parameters(), groups=[isostep.Group("*.bais", lr=0.1)])
        with pytest.raises(isostep.UnknownNameError, match="nrom"):
            AdamW(Twice().named_parameters(), exclude_from_weight_decay=["nrom.*"])

    @pytest.mark.parametrize(
        "given",
        [
            {"lr_ratio": {"embed.*": 0.25, "norm.*": 0.5}},
            {"lr_ratio": lambda name: {"embed": 0.25, "norm": 0.5}.get(name.split(".")[0], 1.0)},
            {"groups": [Group("embed.*", lr_ratio=0.25), Group("norm.*", lr_ratio=0.5)]},
            {"groups": [Group("embed.*", lr_ratio=0.5)], "lr_ratio": {"[en]*": 0.5}},
        ],
    )
    def test_layer_wise_rates_follow_a_scheduler(self, given: Any) -> None:
        a, b = Twice(), Twice()
        reference = torch.optim.AdamW(
            [
                {"params": a.embed.parameters(), "lr": 0.025},
                {"params": a.norm.parameters(), "lr": 0.05},
                {"params": a.head.parameters(), "lr": 0.1},
            ]
        )
        optimizer = AdamW(b.named_parameters(), lr=0.1, **given)
        assert {group["lr"] for group in optimizer.param_groups} == {0.1}
        schedulers = [
            torch.optim.lr_scheduler.ExponentialLR(o, 0.8) for o in (reference, optimizer)
        ]
        for step in range(6):
            by_hand(a, step)
            by_hand(b, step)
            reference.step()
            optimizer.step()
            for scheduler in schedulers:
                scheduler.step()
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            assert torch.allclose(p, q, rtol=1e-12, atol=1e-14)

    def test_a_negative_ratio_is_refused_by_name(self) -> None:
        with pytest.raises(isostep.HyperparameterError, match=r"'head\.weight'"):
            AdamW(Twice().named_parameters(), lr_ratio={"head.weight": -1.0})

    @pytest.mark.parametrize("ratio", ["x", None, math.nan, math.inf, [0.1]])
    def test_a_ratio_that_is_no_number_is_refused_by_name(self, ratio: Any) -> None:
        for given in ({"head.weight": ratio}, lambda name: ratio):
            with pytest.raises(isostep.HyperparameterError, match=r"lr_ratio of .* in \[0, inf\)"):
                AdamW(Twice().named_parameters(), lr_ratio=given)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"lr_ratio": 0.1}, r"lr_ratio=0\.1 .*dict"),
            ({"groups": [Group("*", lr_ratio=-1.0)]}, r"lr_ratio=-1\.0"),
            ({"groups": [Group("*", lr_ratio=lambda t: 0.1)]}, "scheduler"),
            ({"lr_ratio": [("head.*", 0.1)]}, "lr_ratio=.*dict"),
            ({"lr_ratio": {"haed.*": 0.1}}, r"^lr_ratio: .*haed"),
            ({"exclude_from_weight_decay": "*.bias"}, r"exclude_from_weight_decay='\*\.bias'.*\["),
            ({"exclude_from_weight_decay": True}, "exclude_from_weight_decay=True"),
            ({"exclude_from_weight_decay": ["*.bais"]}, r"^exclude_from_weight_decay: .*bais"),
        ],
    )
    def test_an_option_by_name_is_refused_under_its_own_name(
        self, arguments: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(ValueError, match=said):
            AdamW(Twice().named_parameters(), **arguments)


class TestDecay:
    @pytest.mark.parametrize("name", [n for n in NAMES if n != "AdamW"])
    def test_decoupled_for_every_rule_is_a_shrink_before_the_step(self, name: str) -> None:
        plain = FULL[name] | {"weight_decay": 0.0}
        twins = Twins(name, mine={"decay": "decoupled"}, **plain)
        twins.b.param_groups[0]["weight_decay"] = 0.2
        shrink = 1 - plain["lr"] * 0.2
        for _ in range(5):
            twins.give()
            if name == "Adafactor":  # which scales by the parameter before it shrinks
                for group in twins.a.param_groups:
                    group["weight_decay"] = 0.2
            else:
                with torch.no_grad():
                    for p in twins.a_params:
                        p.mul_(shrink)
            twins.a.step()
            twins.b.step()
            twins.compare()

    def test_coupled_for_adamw_is_adam(self) -> None:
        twins = Twins("Adam", **FULL["AdamW"])
        twins.b = AdamW(twins.b_params, decay="coupled", **FULL["AdamW"])
        twins.run(5)


class TestDialects:
    @pytest.mark.parametrize(
        ("dialect", "name"),
        [
            (dialect, name)
            for dialect in ("keras", "tf_keras", "paddle", "optax")
            for name in NAMES
            if (dialect, name) != ("paddle", "Adafactor")
        ],
    )
    def test_formulas_are_the_dialects_and_numbers_the_users(self, dialect: str, name: str) -> None:
        """Against the NumPy front-end, which the parity tests hold against the frameworks."""
        rule = isostep.rules.get(name)
        shared = {k: v for k, v in FULL[name].items() if k not in ("dampening", "lr_decay", "eps")}
        if name == "Adagrad":
            shared["initial_accumulator_value"] = 0.2
        params = make_params(shapes=[(5,), (4, 6)])
        optimizer = ours(name)(params, dialect=dialect, **shared)
        values = isostep.torch.hyper.Hyperparameters(rule, optimizer._extras)
        given = {
            k: v
            for k, v in values.values(optimizer.param_groups[0]).items()
            if k in values.torch.names
            and k not in values.style.fixed
            and k not in values.style.without_effect
        }
        arrays = {str(k): p.detach().clone().numpy() for k, p in enumerate(params)}
        reference = Optimizer(name, arrays, dialect=dialect, **given)
        for step in range(5):
            grads = make_grads(params, step)
            give(params, grads)
            optimizer.step()
            reference.step({str(k): g.numpy() for k, g in enumerate(grads)})
        for k, p in enumerate(params):
            assert np.array_equal(p.detach().numpy(), arrays[str(k)])

    def test_keras_counts_steps_of_the_optimizer_also_after_a_checkpoint(self) -> None:
        """A late parameter then has the bias correction of the optimizer's count."""
        runs = []
        for stop in (False, True):
            params = make_params(shapes=[(4,), (3,)])
            optimizer = AdamW(params, dialect="keras", lr=0.1)
            for step in range(6):
                grads: list[Any] = make_grads(params, step)
                if step < 4:
                    grads[1] = None
                give(params, grads)
                optimizer.step()
                if stop and step == 2:
                    state = through_a_file(optimizer.state_dict())
                    optimizer = AdamW(params, dialect="keras", lr=0.1)
                    optimizer.load_state_dict(state)
            runs.append(bits(optimizer))
        assert_same_bits(*runs)

    def test_a_torch_checkpoint_goes_on_at_its_count_in_keras(self) -> None:
        source_params = make_params(shapes=[(4,)])
        source = torch.optim.AdamW(source_params)
        for step in range(5):
            give(source_params, make_grads(source_params, step))
            source.step()
        optimizer = AdamW(make_params(shapes=[(4,)]), dialect="keras")
        optimizer.load_state_dict(source.state_dict())
        assert optimizer._counted.iteration == 5

    def test_a_rule_that_the_dialect_lacks_is_refused_at_construction(self) -> None:
        with pytest.raises(isostep.UnknownNameError, match="Paddle has no Adafactor"):
            ours("Adafactor")(make_params(), dialect="paddle")


class TestMasters:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("name", NAMES)
    def test_masters_step_as_float32_parameters_do(self, name: str, dtype: torch.dtype) -> None:
        """Two kernels may fuse a multiplication and an addition differently: in each of six steps
        some eight roundings of 2^-24."""
        near = {"rtol": 6 * 8 * 2.0**-24, "atol": 6 * 8 * 2.0**-24}
        low = make_params(dtype)
        full = [nn.Parameter(p.detach().float()) for p in low]
        a = ours(name)(low, master_weights=True, **FULL[name])
        b = ours(name)(full, **FULL[name])
        for step in range(6):
            grads = make_grads(low, step)
            give(low, grads)
            give(full, [g.float() for g in grads])
            a.step()
            b.step()
        for p, q in zip(low, full, strict=True):
            master = a.state[p]["master_weights"]
            assert master.dtype == torch.float32
            assert torch.allclose(master, q, **near)
            assert_same_bits(p.data, master.to(dtype))
            for key, value in b.state[q].items():
                assert a.state[p][key].dtype == torch.float32
                assert torch.allclose(a.state[p][key], value, **near)

    def test_float32_parameters_have_none(self) -> None:
        params = make_params(torch.float32)
        optimizer = AdamW(params, master_weights=True)
        give(params, make_grads(params, 0))
        optimizer.step()
        assert all("master_weights" not in optimizer.state[p] for p in params)

    def test_what_is_loaded_into_the_model_reaches_the_masters(self) -> None:
        """Elsewhere they keep the digits that the model does not have."""
        p = nn.Parameter(torch.full((4,), 1.0, dtype=torch.bfloat16))
        optimizer = SGD([p], lr=2.0**-12, master_weights=True)
        p.grad = torch.ones_like(p)
        optimizer.step()
        with torch.no_grad():
            p[:2] = 3.0
        optimizer.step()
        one = 1.0 - 2 * 2.0**-12
        wanted = torch.tensor([3.0 - 2.0**-12, 3.0 - 2.0**-12, one, one])
        assert_same_bits(optimizer.state[p]["master_weights"], wanted)

    def test_an_averaging_context_does_not_cost_the_masters_their_digits(self) -> None:
        runs = []
        for look in (False, True):
            params = make_params(torch.bfloat16)
            optimizer = AdamW(params, lr=0.01, master_weights=True, ema=0.5)
            for step in range(5):
                give(params, make_grads(params, step))
                optimizer.step()
                if look:
                    with optimizer.averaged_params():
                        pass
            runs.append(bits(optimizer))
        assert_same_bits(*runs)


class TestStateDtype:
    @pytest.mark.parametrize("name", NAMES)
    def test_one_dtype_for_all_element_wise_slots(self, name: str) -> None:
        params = make_params(torch.float32)
        optimizer = ours(name)(params, state_dtype=torch.bfloat16, **FULL[name])
        give(params, make_grads(params, 0))
        optimizer.step()
        for p in params:
            for key, value in optimizer.state[p].items():
                factor = key in ("step", "row_var", "col_var")
                assert value.dtype == (torch.float32 if factor else torch.bfloat16)

    def test_one_dtype_for_each_slot(self) -> None:
        params = make_params(torch.float32)
        optimizer = AdamW(params, state_dtype={"exp_avg": "bfloat16"})
        give(params, make_grads(params, 0))
        optimizer.step()
        kept = optimizer.state[params[1]]
        assert (kept["exp_avg"].dtype, kept["exp_avg_sq"].dtype) == (torch.bfloat16, torch.float32)

    def test_an_initial_value_is_rounded_once(self) -> None:
        params = make_params(torch.bfloat16)
        optimizer = ours("Adagrad")(
            params, initial_accumulator_value=0.1, state_dtype=torch.float32
        )
        assert optimizer.state[params[0]]["sum"].item() == np.float32(0.1)


class TestLookingIn:
    def test_report(self) -> None:
        model = Twice()
        optimizer = AdamW(
            model.named_parameters(), lr=0.1, report=True, exclude_from_weight_decay=["*.bias"]
        )
        assert optimizer.report is None
        by_hand(model, 0)
        groups = [[p.detach().clone() for p in g["params"]] for g in optimizer.param_groups]
        optimizer.step()
        report = optimizer.report
        assert report.step == 1
        assert not report.skipped
        for k, (before, group) in enumerate(zip(groups, optimizer.param_groups, strict=True)):
            now = group["params"]
            measured = report.groups[k]
            grad, param, update = (
                norm([p.grad for p in now]),
                norm(before),
                norm([p.detach() - b for p, b in zip(now, before, strict=True)]),
            )
            assert measured.grad_norm == pytest.approx(grad, rel=1e-12)
            assert measured.param_norm == pytest.approx(param, rel=1e-12)
            assert measured.update_norm == pytest.approx(update, rel=1e-12)

    def test_plan_says_what_a_step_will_do_and_does_nothing(self) -> None:
        model = Twice(torch.bfloat16)
        optimizer = AdamW(
            model.named_parameters(), master_weights=True, ema=0.9, clip=isostep.Clip(norm=1.0)
        )
        plan = optimizer.plan()
        assert not optimizer.state
        by_hand(model, 0)
        optimizer.step()
        kept = [
            v.numel() * v.element_size()
            for p in model.parameters()
            for k, v in optimizer.state[p].items()
            if k != "step"
        ]
        assert plan.state_bytes == sum(kept)
        assert {e.name for e in plan.entries} == {n for n, _ in model.named_parameters()}
        assert "native, flat, 2 passes, float32" in str(plan)

    def test_source_is_what_ran(self) -> None:
        params = make_params()
        optimizer = AdamW(params)
        assert optimizer.ran == []
        assert optimizer.source() == ""
        give(params, make_grads(params, 0))
        optimizer.step()
        assert optimizer.ran == ["native flat float64"]
        assert "exp_avg" in optimizer.source()


def norm(tensors: list[Tensor]) -> float:
    return torch.cat([t.flatten() for t in tensors]).norm().item()


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


EVERYTHING: list[dict[str, Any]] = [
    {"ema": 0.9},
    {"ema": isostep.EMA(0.9, overwrite_every=3)},
    {"master_weights": True},
    {"state_dtype": "float32"},
    {"dialect": "keras"},
    {"dialect": "tf_keras", "ema": 0.8},
    {"decay": "decoupled", "lr_ratio": {"embed.*": 0.5}, "exclude_from_weight_decay": ["norm.*"]},
    {
        "clip": isostep.Clip(global_norm=1.0),
        "ema": 0.9,
        "master_weights": True,
        "nonfinite": "skip",
        "report": True,
        "groups": [isostep.Group("*.bias", lr=0.2)],
        "lr_ratio": {"head.*": 0.5},
    },
]


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adafactor", "Adagrad"])
@pytest.mark.parametrize("extras", EVERYTHING, ids=lambda e: "-".join(e))
def test_all_of_it_survives_a_checkpoint_bit_for_bit(name: str, extras: dict[str, Any]) -> None:
    def fresh() -> tuple[Twice, Any]:
        model = Twice(torch.bfloat16)
        return model, ours(name)(model.named_parameters(), **FULL[name], **extras)

    def run(model: Twice, optimizer: Any, steps: range) -> None:
        for step in steps:
            by_hand(model, step)
            if step == 1 and extras.get("nonfinite") == "skip":
                model.norm.bias.grad[0] = float("inf")
            optimizer.step()

    model, optimizer = fresh()
    run(model, optimizer, range(7))
    stopped_model, stopped = fresh()
    run(stopped_model, stopped, range(4))
    resumed_model, resumed = fresh()
    resumed_model.load_state_dict(through_a_file(stopped_model.state_dict()))
    resumed.load_state_dict(through_a_file(stopped.state_dict()))
    run(resumed_model, resumed, range(4, 7))
    assert_same_bits(bits(resumed), bits(optimizer))
    if "ema" in extras:
        assert resumed.skipped == optimizer.skipped
        with resumed.averaged_params(), optimizer.averaged_params():
            assert_same_bits(bits(resumed), bits(optimizer))


@pytest.mark.parametrize("lr", [-1.0, float("nan"), "x", True])
def test_a_group_with_an_impossible_learning_rate_is_refused(lr: Any) -> None:
    model = Twice()
    with pytest.raises(isostep.HyperparameterError, match="lr of"):
        AdamW(model.named_parameters(), groups=[isostep.Group("head.*", lr=lr)])
