"""What may change while training: hyperparameters, gradients, parameters themselves."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import isostep
from isostep.torch import AdamW

from .twins import FULL, NAMES, Twins, assert_same_bits, bits, give, make_grads, make_params, ours

EDITS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.01, "momentum": 0.5, "dampening": 0.1, "weight_decay": 0.2, "maximize": True},
    "Adagrad": {"lr": 0.1, "lr_decay": 0.2, "eps": 0.1, "weight_decay": 0.2, "maximize": True},
    "RMSprop": {"lr": 0.1, "alpha": 0.5, "eps": 0.1, "weight_decay": 0.2, "momentum": 0.3},
    "Adadelta": {"lr": 0.1, "rho": 0.5, "eps": 0.1, "weight_decay": 0.0, "maximize": True},
    "Adam": {"lr": 0.1, "betas": (0.5, 0.6), "eps": 0.1, "weight_decay": 0.2, "maximize": True},
    "AdamW": {"lr": 0.1, "betas": (0.0, 0.6), "eps": 0.1, "weight_decay": 0.0, "maximize": True},
    "Adafactor": {"lr": 0.1, "beta2_decay": -0.5, "eps": (None, 0.1), "d": 2.0, "maximize": True},
}
EXTREMES: dict[str, list[dict[str, Any]]] = {
    "SGD": [{"lr": 0.0}, {"momentum": 1.0}, {"momentum": 0.9, "dampening": 1.5}, {"lr": -0.1}],
    "Adagrad": [{"lr": 0.0}, {"eps": 0.0}],
    "RMSprop": [{"alpha": 0.0}, {"alpha": 1.0, "lr": 1e-9}, {"momentum": 1.0}],
    "Adadelta": [{"rho": 0.0}, {"rho": 1.0}],
    "Adam": [{"betas": (0.0, 0.0)}, {"lr": 0.0}, {"eps": 0.0}],
    "AdamW": [{"weight_decay": 0.0}, {"betas": (0.9, 0.0)}],
    "Adafactor": [{"beta2_decay": 0.0}, {"eps": (0.0, 0.0)}, {"lr": 0.0}],
}


def both(twins: Twins, edit: Callable[[dict[str, Any]], None]) -> None:
    for optimizer in (twins.a, twins.b):
        edit(optimizer.param_groups[0])


@pytest.mark.parametrize(
    ("name", "key", "value"), [(n, k, v) for n in NAMES for k, v in EDITS[n].items()]
)
def test_a_live_edit_acts_from_the_next_step_on(name: str, key: str, value: Any) -> None:
    twins = Twins(name, **FULL[name])
    twins.run(2)
    both(twins, lambda group: group.update({key: value}))
    twins.run(2)
    both(twins, lambda group: group.update({key: FULL[name].get(key, twins.a.defaults[key])}))
    twins.run(2)


@pytest.mark.parametrize(("name", "edit"), [(n, e) for n in NAMES for e in EXTREMES[n]])
def test_every_number_that_torch_takes_is_taken(name: str, edit: dict[str, Any]) -> None:
    twins = Twins(name)
    both(twins, lambda group: group.update(edit))
    twins.run(4)


def test_a_number_out_of_range_is_named_and_nothing_is_changed() -> None:
    twins = Twins("AdamW")
    twins.run(1)
    twins.b.param_groups[0]["betas"] = (0.9, 1.5)
    twins.give()
    before = bits(twins.b)
    with pytest.raises(isostep.HyperparameterError, match=r"betas\[1\]=1.5"):
        twins.b.step()
    assert_same_bits(bits(twins.b), before)


def test_without_gradients_no_number_is_looked_at() -> None:
    """OneCycleLR may be asked for a momentum of 22; torch steps an empty model with it."""
    twins = Twins("AdamW", betas=(0.9, 0.99))
    both(twins, lambda group: group.update(betas=(22.0, 0.99)))
    twins.step([None] * len(twins.a_params))
    assert not twins.b.state
    both(twins, lambda group: group.update(betas=(0.9, 0.99)))
    twins.run(2)


@pytest.mark.parametrize("dampening", [0.0, 0.4])
def test_momentum_switched_on_off_and_on(dampening: float) -> None:
    """torch's first buffer is the first gradient, undampened, and an old buffer is taken up."""
    twins = Twins("SGD", lr=0.1, dampening=dampening)
    twins.run(2)
    for momentum in (0.9, 0.0, 0.8):
        both(twins, lambda group, m=momentum: group.update(momentum=m))
        twins.run(2)


def test_nesterov_switched_on() -> None:
    twins = Twins("SGD", lr=0.1, momentum=0.9)
    twins.run(2)
    both(twins, lambda group: group.update(nesterov=True))
    twins.run(2)


def test_amsgrad_switched_on_starts_at_zero() -> None:
    """torch has no such slot and fails; as if it had been there from the start, at zero."""
    twins = Twins("Adam", lr=0.1)
    twins.run(2)
    for p in twins.a_params:
        twins.a.state[p]["max_exp_avg_sq"] = torch.zeros_like(p)
    both(twins, lambda group: group.update(amsgrad=True))
    twins.run(3)


def test_decoupled_decay_switched_as_in_torch() -> None:
    twins = Twins("Adam", lr=0.1, weight_decay=0.1)
    twins.run(2)
    both(twins, lambda group: group.update(decoupled_weight_decay=True))
    twins.run(2)
    both(twins, lambda group: group.update(decoupled_weight_decay=False))
    twins.run(2)


def test_differentiable_switched_on_changes_the_engine() -> None:
    twins = Twins("AdamW", lambda: [p.detach() for p in make_params()], **FULL["AdamW"])
    twins.run(2)
    twins.b.param_groups[0]["differentiable"] = True
    twins.step()
    assert {ran.split()[0] for ran in twins.b.ran} == {"array"}


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_learning_rate_is_read_in_each_step(name: str, shape: tuple[int, ...]) -> None:
    twins = Twins(name)
    rate = torch.full(shape, 0.1, dtype=torch.float64)
    both(twins, lambda group: group.update(lr=rate))
    twins.run(2)
    rate.fill_(0.03)  # as schedulers do
    twins.run(2)


@pytest.mark.parametrize("name", NAMES)
def test_a_float32_learning_rate_is_followed_to_float32(name: str) -> None:
    """torch then computes the step size in float32: at most three roundings of 2^-24 in each of
    four steps, of an update that is at most twice the parameter's largest magnitude so far."""
    twins = Twins(name, lr=torch.tensor(0.1))
    for _ in range(4):
        twins.step(compare=False)
        twins.compare(tolerance=4 * 3 * 2 * 2.0**-24)


def test_tensor_betas() -> None:
    rates = [torch.tensor(x, dtype=torch.float64) for x in (0.1, 0.5, [0.75])]
    Twins("Adam", lr=rates[0], betas=(rates[1], rates[2])).run(3)


class TestGradientsThatComeAndGo:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("first", [1, 4])
    def test_a_parameter_with_its_first_gradient_at_step_k(self, name: str, first: int) -> None:
        twins = Twins(name, **FULL[name])
        for step in range(8):
            grads: list[Any] = make_grads(twins.a_params, step)
            if step < first:
                grads[1] = grads[3] = None
            twins.step(grads)

    @pytest.mark.parametrize("name", NAMES)
    def test_gaps(self, name: str) -> None:
        twins = Twins(name, **FULL[name])
        for step in range(12):
            grads = make_grads(twins.a_params, step)
            twins.step([g if (step + k) % 3 else None for k, g in enumerate(grads)])

    def test_frozen_and_unfrozen(self) -> None:
        torch.manual_seed(0)
        models = [nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double() for _ in range(2)]
        models[1].load_state_dict(models[0].state_dict())
        iterator = iter([list(m.parameters()) for m in models])
        twins = Twins("AdamW", lambda: next(iterator), **FULL["AdamW"])
        for step in range(9):
            for model in models:
                model[0].requires_grad_(not 3 <= step < 6)
                model.zero_grad()
                model(torch.ones(2, 3, dtype=torch.float64)).square().sum().backward()
            twins.a.step()
            twins.b.step()
            twins.compare()

    def test_masks_that_never_come_again_do_not_pile_up(self) -> None:
        params = make_params(shapes=[(2,)] * 12)
        optimizer = AdamW(params)
        for step in range(40):
            grads = make_grads(params, step)
            give(params, [g if step >> (k % 6) & 1 else None for k, g in enumerate(grads)])
            optimizer.step()
        assert len(optimizer._binding.stepper._cohorts.recent) <= 9


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_accumulate_over_several_passes(name: str, set_to_none: bool) -> None:
    """Nothing is stepped or cleared between two steps, whatever is added to gradients in place."""
    twins = Twins(name, **FULL[name])
    for step in range(4):
        for params, optimizer in ((twins.a_params, twins.a), (twins.b_params, twins.b)):
            optimizer.zero_grad(set_to_none=set_to_none)
            for part in range(3):
                grads = make_grads(params, 3 * step + part)
                sum((p * g).sum() for p, g in zip(params, grads, strict=True)).backward()
            optimizer.step()
        twins.compare()


class TestParametersThatMove:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("name", NAMES)
    def test_a_cast_model_goes_on_as_one_made_so_would(self, name: str, dtype: torch.dtype) -> None:
        """One that was made in the new dtype, and has loaded the state."""
        params = make_params(torch.float32)
        optimizer = ours(name)(params, **FULL[name])
        for step in range(2):
            give(params, make_grads(params, step))
            optimizer.step()
        optimizer.zero_grad()
        for p in params:
            p.data = p.data.to(dtype)  # what `model.to` does
        fresh = [nn.Parameter(p.detach().clone()) for p in params]
        other = ours(name)(fresh, **FULL[name])
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for step in range(2, 5):
            for own, each in ((params, optimizer), (fresh, other)):
                give(own, make_grads(own, step))
                each.step()
        assert_same_bits(bits(optimizer), bits(other))
        assert {p.dtype for p in params} == {dtype}

    @pytest.mark.parametrize("name", NAMES)
    def test_memory_replaced_by_other_memory(self, name: str) -> None:
        twins = Twins(name, **FULL[name])
        twins.run(2)
        for params in (twins.a_params, twins.b_params):
            for p in params:
                p.data = p.data.clone() * 1.5
        twins.largest.clear()
        twins.run(2)

    def test_another_order_of_memory(self) -> None:
        twins = Twins("AdamW", **FULL["AdamW"])
        twins.run(2)
        for params in (twins.a_params, twins.b_params):
            params[4].data = params[4].data.to(memory_format=torch.channels_last)
            params[2].data = params[2].data.t().contiguous().t()
        twins.run(2)

    def test_cast_before_the_first_step(self) -> None:
        model = nn.Linear(3, 2)
        optimizer = AdamW(model.parameters())
        model.double()
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        assert {ran.split()[-1] for ran in optimizer.ran} == {"float64"}
        assert optimizer.state[model.weight]["exp_avg"].dtype == torch.float64

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_cast_mid_training_keeps_the_state_that_is_there(self, dtype: torch.dtype) -> None:
        """torch fails here; the step goes on with state in the dtype that it had."""
        model = nn.Linear(3, 2)
        optimizer = AdamW(model.parameters(), lr=0.1)
        for _ in range(3):
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            optimizer.step()
            kept = optimizer.state[model.weight]["exp_avg"].clone()
            model.to(dtype)
        model.to(torch.float32)
        assert kept.dtype == torch.float32
        # After three equal gradients: 1 - beta1^3, in float32.
        assert torch.allclose(kept, torch.tensor(1 - 0.9**3), rtol=2**-21)

    def test_state_of_an_old_shape_is_refused_until_it_is_dropped(self) -> None:
        p = nn.Parameter(torch.zeros(4))
        optimizer = AdamW([p])
        p.grad = torch.ones(4)
        optimizer.step()
        p.data = p.data[:2]
        p.grad = torch.ones(2)
        with pytest.raises(isostep.StateError, match=r"'exp_avg' .* has shape \(4,\)"):
            optimizer.step()
        optimizer.state.pop(p)
        optimizer.step()
        assert optimizer.state[p]["step"] == 1

    def test_values_written_by_someone_else_are_what_is_stepped(self) -> None:
        twins = Twins("AdamW", **FULL["AdamW"])
        twins.run(2)
        with torch.no_grad():
            for params in (twins.a_params, twins.b_params):
                for p in params:
                    p.fill_(0.5)
        twins.run(2)


def test_an_interrupt_leaves_steps_and_slots_together(monkeypatch: pytest.MonkeyPatch):
    from isostep import stepper

    p = torch.ones(4, requires_grad=True)
    optimizer = AdamW([p])
    p.grad = torch.ones(4)
    execute = stepper.execute

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        return execute(*arguments)

    monkeypatch.setattr(stepper, "execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert optimizer.state[p]["exp_avg"].abs().min() > 0
    assert optimizer.state[p]["step"] == 1
