"""Steps that only torch.optim's own class takes as torch takes them, and the way back."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pytest
import torch

import isostep

from .twins import FULL, NAMES, Twins, give, make_grads, make_params
from .twins import ours as made_by_us
from .twins import theirs as made_by_torch

OWN = ["torch.optim"]


def with_the_first_twice() -> list[Any]:
    params = make_params()
    return [*params, params[0]]


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_that_is_twice_in_a_group_is_stepped_twice(name: str) -> None:
    with pytest.warns(UserWarning, match="duplicate parameters"):
        twins = Twins(name, with_the_first_twice, **FULL[name])
    twins.run(5)
    assert twins.b.ran == OWN
    if name != "SGD":
        assert float(twins.b.state[twins.b_params[0]]["step"]) == 10


def test_a_group_added_later_may_repeat_a_parameter() -> None:
    twins = Twins("AdamW", **FULL["AdamW"])
    twins.run(2)
    assert "native" in twins.b.ran[0]
    for optimizer, params in ((twins.a, twins.a_params), (twins.b, twins.b_params)):
        params += make_params(shapes=[(3,)], seed=1) * 2
        with pytest.warns(UserWarning, match="duplicate"):
            optimizer.add_param_group({"params": params[-2:]})
    twins.run(3)
    assert twins.b.ran == OWN


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_put_into_its_group_again_between_steps_is_stepped_twice(name: str) -> None:
    twins = Twins(name, **FULL[name])
    twins.run(2)
    for optimizer in (twins.a, twins.b):
        held = optimizer.param_groups[0]["params"]
        held.append(held[0])
    twins.run(2)
    assert twins.b.ran == OWN
    for optimizer in (twins.a, twins.b):
        optimizer.param_groups[0]["params"].pop()
    twins.run(2)
    assert "native" in twins.b.ran[0]


def test_across_groups_torch_refuses_it() -> None:
    p = make_params()[1]
    with pytest.raises(ValueError, match="more than one parameter group"):
        made_by_us("SGD")([{"params": [p]}, {"params": [p]}])


def test_an_extra_beside_a_repeated_parameter_is_refused_and_nothing_is_added() -> None:
    params = make_params()
    optimizer = made_by_us("AdamW")(params, clip=isostep.Clip(global_norm=1.0))
    new = make_params(shapes=[(3,)]) * 2
    with (
        pytest.warns(UserWarning, match="duplicate"),
        pytest.raises(isostep.HyperparameterError, match=r"clip: .* twice .*pass each .* once"),
    ):
        optimizer.add_param_group({"params": new})
    assert len(optimizer.param_groups) == 1
    give(params, make_grads(params, 0))
    optimizer.step()
    assert "native" in optimizer.ran[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_state_goes_from_torchs_step_to_the_fused_one_and_back(name: str) -> None:
    """The same optimizer, its first group's flag edited between the steps."""
    twins = Twins(name, **FULL[name])
    own = type(twins.b)._init_group
    for _ in range(3):
        twins.run(2)
        assert "native" in twins.b.ran[0]
        twins.b._init_group = own.__get__(twins.b)
        twins.run(2)
        assert twins.b.ran == OWN
        del twins.b._init_group
    copied = copy.deepcopy(twins.b)
    assert copied.state_dict().keys() == twins.a.state_dict().keys()


def test_a_gradient_scaler_unscales_where_torchs_own_step_cannot() -> None:
    results: list[Any] = []
    for classes in (made_by_torch, made_by_us):
        params = make_params(torch.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            optimizer = classes("AdamW")([*params, params[0]], lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step in range(3):
            give(params, make_grads(params, step, scale=8.0))
            scaler.scale(torch.zeros(()))
            scaler.step(optimizer)
            scaler.update()
        results.append(params)
    assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))


def test_capturable_is_torchs_own_step_which_has_an_error_for_the_cpu() -> None:
    params = make_params()
    optimizer = made_by_us("AdamW")(params, capturable=True)
    give(params, make_grads(params, 0))
    with pytest.raises(AssertionError, match="capturable"):
        optimizer.step()
    with pytest.raises(isostep.HyperparameterError, match=r"ema: .*capturable"):
        made_by_us("AdamW")(params, capturable=True, ema=0.9)


@pytest.mark.parametrize(
    ("name", "values"),
    [("SGD", {"lr": 0.1}), ("Adam", {"lr": 0.1}), ("Adam", {"weight_decay": 0.1})],
)
def test_a_hyperparameter_is_learned_through_a_differentiable_step(
    name: str, values: dict[str, float]
) -> None:
    found: list[Any] = []
    for classes in (made_by_torch, made_by_us):
        learned = {
            key: torch.tensor(value, dtype=torch.float64, requires_grad=True)
            for key, value in values.items()
        }
        start = make_params(shapes=[(3,)])[0]
        param = start.clone()
        param.retain_grad()
        optimizer = classes(name)([param], differentiable=True, **learned)
        for step in range(2):
            param.grad = make_grads([start], step)[0]
            optimizer.step()
        (param * param).sum().backward()
        found += [value.grad for value in learned.values()]
    assert found[0] is not None
    assert found[0] != 0
    assert torch.equal(*found)


def test_the_plan_says_whose_step_it_is() -> None:
    optimizer = made_by_us("AdamW")(make_params(), capturable=True)
    plan = optimizer.plan()
    assert plan.kernels == ["torch.optim's own step"]
    assert plan.step_bytes == 0
    assert plan.state_bytes == made_by_us("AdamW")(make_params()).plan().state_bytes
    assert "own step" in str(plan)


class TestCompiled:
    """Under torch.compile. Compilation is dynamo's alone: what matters is what it traces."""

    def test_an_optimizer_made_in_a_compiled_function(self) -> None:
        @torch.compile(backend="eager")
        def make(params: list[Any]) -> Any:
            optimizer = made_by_us("AdamW")(params, lr=0.1, clip=isostep.Clip(global_norm=1.0))
            optimizer.zero_grad()
            return optimizer

        params = make_params()
        optimizer = make(params)
        give(params, make_grads(params, 0))
        optimizer.step()
        assert "native" in optimizer.ran[0]
        saved = io.BytesIO()
        torch.save(optimizer.state_dict(), saved)

    @pytest.mark.parametrize("own", [False, True])
    def test_a_compiled_step(self, own: bool) -> None:
        shapes = [(3,), (2, 2)]
        params, twin = make_params(shapes=shapes), make_params(shapes=shapes)
        a, b = made_by_torch("AdamW")(params, lr=0.1), made_by_us("AdamW")(twin, lr=0.1)
        if own:
            b._init_group = b._init_group
        step = torch.compile(b.step, backend="eager")
        for k in range(2):
            give(params, make_grads(params, k))
            give(twin, make_grads(twin, k))
            a.step()
            step()
        # The graph that dynamo makes of torch's step takes 1 - 0.999^t in float32.
        tolerance = 2.0**-24 / 0.001 if own else 1e-12
        assert all(torch.allclose(p, q, rtol=tolerance) for p, q in zip(params, twin, strict=True))
        assert b.ran == (OWN if own else ["native flat float64"])
