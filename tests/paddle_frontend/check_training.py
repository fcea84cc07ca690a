"""Whole trainings: paddle.Model, mixed precision, gradient scaling, memory."""

from __future__ import annotations

import gc
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import paddle
import pytest
from sklearn.datasets import load_digits

import isostep.paddle

from .twins import OURS, apart, gradients, parameters, take


class Digits(paddle.io.Dataset):
    def __init__(self) -> None:
        digits = load_digits()
        self.images = (digits.images[:512] / 16.0).astype("float32").reshape(-1, 64)
        self.labels = digits.target[:512].astype("int64")

    def __getitem__(self, index: int) -> Any:
        return self.images[index], self.labels[index]

    def __len__(self) -> int:
        return len(self.images)


def fitted(classes: Any, name: str = "AdamW", amp: Any = None, **options: Any) -> Any:
    """A model after two epochs, and its loss in each."""
    with paddle.utils.unique_name.guard():
        paddle.seed(3)
        network = paddle.nn.Sequential(
            paddle.nn.Linear(64, 32),
            paddle.nn.LayerNorm(32),
            paddle.nn.ReLU(),
            paddle.nn.Linear(32, 10),
        )
        rate = paddle.optimizer.lr.CosineAnnealingDecay(0.03125, 16)
        optimizer = getattr(classes, name)(
            rate,
            parameters=network.parameters(),
            grad_clip=paddle.nn.ClipGradByGlobalNorm(0.5),
            **options,
        )
        model = paddle.Model(network)
        model.prepare(optimizer, paddle.nn.CrossEntropyLoss(), amp_configs=amp)
        losses: list[float] = []

        class Watch(paddle.callbacks.Callback):
            def on_train_batch_end(self, step: int, logs: Any = None) -> None:
                losses.append(float(np.ravel(logs["loss"])[0]))

        model.fit(Digits(), batch_size=64, epochs=2, shuffle=False, verbose=0, callbacks=[Watch()])
    return model, optimizer, losses


def test_digits_train_as_with_paddle() -> None:
    _, _, theirs = fitted(paddle.optimizer)
    _, optimizer, ours = fitted(isostep.paddle)
    assert optimizer.ran == ["native flat float32"]
    assert theirs[-1] < 0.5 * theirs[0]
    np.testing.assert_allclose(ours, theirs, rtol=2e-5)


def test_a_model_is_saved_and_goes_on(tmp_path: Path) -> None:
    model, _, _ = fitted(isostep.paddle)
    model.save(str(tmp_path / "digits"))
    assert (tmp_path / "digits.pdopt").exists()
    for classes in (isostep.paddle, paddle.optimizer):
        again, optimizer, _ = fitted(classes)
        again.load(str(tmp_path / "digits"))
        batch = Digits()[0:64]
        one = again.train_batch([batch[0]], [batch[1]])
        assert np.isfinite(one[0])
        other, _, _ = fitted(isostep.paddle)
        other.load(str(tmp_path / "digits"))
        two = other.train_batch([batch[0]], [batch[1]])
        np.testing.assert_allclose(one[0], two[0], rtol=1e-5)
        assert optimizer is not None


def test_a_model_trains_in_a_program_too() -> None:
    paddle.enable_static()
    try:
        device = [paddle.static.InputSpec([None, 64], "float32", "x")]
        labels = [paddle.static.InputSpec([None, 1], "int64", "label")]
        losses: dict[str, float] = {}
        for classes in (paddle.optimizer, isostep.paddle):
            with paddle.utils.unique_name.guard():
                paddle.seed(3)
                network = paddle.nn.Linear(64, 10)
                model = paddle.Model(network, device, labels)
                model.prepare(classes.AdamW(0.03125), paddle.nn.CrossEntropyLoss())
                digits = Digits()
                for _ in range(4):
                    found = model.train_batch([digits.images], [digits.labels[:, None]])
                losses[classes.__name__] = float(np.ravel(found[0])[0])
        one, two = losses.values()
        assert two == pytest.approx(one, rel=1e-5)
    finally:
        paddle.disable_static()


# -- mixed precision -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["step", "minimize"])
def test_what_a_scaler_has_found_stops_a_step(way: str) -> None:
    """Paddle's scalers, which work on GPUs alone, say so by an auxiliary variable, and read it."""
    params = parameters("float32")
    optimizer = isostep.paddle.AdamW(0.125, parameters=params)

    def go_on(bad: bool) -> None:
        optimizer.clear_grad()
        loss = sum((p * p).sum() for p in params)
        loss.backward()
        optimizer._set_auxiliary_var("found_inf", paddle.to_tensor([bad]))
        if way == "step":
            optimizer.step()
        else:
            optimizer.minimize(loss)
        assert optimizer._get_auxiliary_var("found_inf") is bad

    go_on(False)
    before = {k: v.numpy() for k, v in optimizer.state_dict().items() if k != "isostep"}
    kept = [p.numpy() for p in params]
    go_on(True)
    for key, value in optimizer.state_dict().items():
        if key != "isostep":
            np.testing.assert_array_equal(before[key], value.numpy())
    for p, k in zip(params, kept, strict=True):
        np.testing.assert_array_equal(p.numpy(), k)
    go_on(False)
    assert set(optimizer.state_dict()["isostep"]["steps"].values()) == {2}


def test_a_scaler_on_a_cpu_is_a_step() -> None:
    params, twins = parameters("float32"), parameters("float32")
    optimizer = isostep.paddle.AdamW(0.125, parameters=params)
    scaler = paddle.amp.GradScaler(init_loss_scaling=64.0)
    scaler.scale(sum((p * p).sum() for p in params)).backward()
    scaler.step(optimizer)
    scaler.update()
    other = isostep.paddle.AdamW(0.125, parameters=twins)
    sum((p * p).sum() for p in twins).backward()
    other.step()
    assert apart(twins, params) == 0.0


@pytest.mark.parametrize("name", OURS)
def test_low_precision_parameters_are_rounded_masters(name: str) -> None:
    """The masters take the steps of float32 parameters; the parameters are their roundings."""
    with paddle.utils.unique_name.guard():
        params = parameters("bfloat16")
        wide = [paddle.create_parameter(p.shape, "float32") for p in params]
        for w, p in zip(wide, params, strict=True):
            w.set_value(p.astype("float32"))
        low = getattr(isostep.paddle, name)(parameters=params, **OURS[name])
        low._multi_precision = True  # as paddle.amp.decorate does
        take(low, params, range(6), "bfloat16")
        high = getattr(isostep.paddle, name)(parameters=wide, **OURS[name])
        for k in range(6):
            for w, g in zip(wide, gradients(k, "bfloat16"), strict=True):
                w.grad = g.astype("float32")
            high.step()
    masters = [low._master_weights[p.name] for p in params]
    assert apart(wide, masters) < 1e-6
    for p, m in zip(params, masters, strict=True):
        np.testing.assert_array_equal(
            p.astype("float32").numpy(), m.astype("bfloat16").astype("float32").numpy()
        )


def test_models_cast_midway_train_with_groups() -> None:
    paddle.seed(0)
    layer = paddle.nn.Linear(4, 3)
    optimizer = isostep.paddle.AdamW(
        0.125,
        parameters=[
            {"params": [layer.weight], "weight_decay": 0.25},
            {"params": [layer.bias], "learning_rate": 0.5},
        ],
    )
    layer.to(dtype="bfloat16")  # what paddle.amp.decorate does at level O2, on GPUs
    optimizer._multi_precision = True
    assert layer.weight.dtype == paddle.bfloat16
    before = layer.weight.astype("float32").numpy()
    out = (layer.weight.astype("float32") ** 2).sum() + layer.bias.astype("float32").sum()
    out.backward()
    optimizer.step()
    assert optimizer._master_weights[layer.weight.name].dtype == paddle.float32
    assert np.abs(layer.weight.astype("float32").numpy() - before).max() > 0


def test_float32_gradients_of_low_precision_parameters_are_taken() -> None:
    """As with `master_grad` of paddle.amp.decorate."""
    params = parameters("bfloat16")
    optimizer = isostep.paddle.AdamW(0.125, parameters=params, multi_precision=True)
    optimizer.apply_gradients(list(zip(params, gradients(0, "float32"), strict=True)))
    assert optimizer.ran == ["native flat float32"]


# -- memory ----------------------------------------------------------------------------------------


def test_parameters_may_move_in_memory() -> None:
    params = parameters("float32")
    optimizer = isostep.paddle.AdamW(0.125, parameters=params)
    take(optimizer, params, range(2), "float32")
    twins = parameters("float32")
    other = isostep.paddle.AdamW(0.125, parameters=twins)
    take(other, twins, range(2), "float32")
    copy = params[0].detach().clone()
    copy._share_buffer_to(params[0])
    assert params[0].data_ptr() == copy.data_ptr()
    take(optimizer, params, range(2, 4), "float32")
    take(other, twins, range(2, 4), "float32")
    assert apart(twins, params) == 0.0


def test_a_dtype_that_changes_in_place_is_noticed() -> None:
    for size in (8, 16, 32, 64):
        layer = paddle.nn.Linear(size, size, bias_attr=False)
        optimizer = isostep.paddle.SGD(0.5, parameters=layer.parameters())
        layer.weight.grad = paddle.ones_like(layer.weight)
        optimizer.step()
        layer.weight.grad = None
        layer.to(dtype="float16")
        layer.to(dtype="float64")
        before = layer.weight.numpy()
        layer.weight.grad = paddle.ones_like(layer.weight)
        optimizer.step()
        np.testing.assert_allclose(before - layer.weight.numpy(), 0.5, rtol=1e-12)


@pytest.mark.parametrize("found", [None, False])
def test_steps_with_frozen_and_unused_parameters_are_usual(
    found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is made for them, and gradients are looked at in few calls."""
    params = parameters("float32")
    params[0].stop_gradient = True
    optimizer = isostep.paddle.AdamW(0.125, parameters=params)
    for k in range(3):
        for p, g in zip(params[:3], gradients(k, "float32")[:3], strict=True):
            p.grad = g
        if found is not None:
            optimizer._set_auxiliary_var("found_inf", paddle.to_tensor([found]))
        optimizer.step()
        monkeypatch.setattr("isostep.paddle.optimizer.Binding", None)
        monkeypatch.setattr("isostep.paddle.binding.Gradients", None)
    assert optimizer._binding.counts() == {p.name: 3 for p in params[1:3]}


def test_a_copy_has_memory_of_its_own() -> None:
    import copy

    params = parameters("float32")
    optimizer = isostep.paddle.AdamW(0.125, parameters=params)
    take(optimizer, params, range(2), "float32")
    pair = copy.deepcopy({"optimizer": optimizer, "params": params})
    kept = [p.numpy() for p in params]
    moment = optimizer._accumulators["moment1"][params[0].name].numpy()
    take(pair["optimizer"], pair["params"], range(2, 4), "float32")
    for p, k in zip(params, kept, strict=True):
        np.testing.assert_array_equal(p.numpy(), k)
    np.testing.assert_array_equal(
        moment, optimizer._accumulators["moment1"][params[0].name].numpy()
    )
    moved = [np.abs(p.numpy() - k).max() for p, k in zip(pair["params"], kept, strict=True)]
    assert min(moved) > 0  # Paddle gives copies new names, so their moments begin anew


def held_by(owner: Any) -> set[int]:
    """Where all tensors lie that an object leads to."""
    seen: dict[int, Any] = {}
    open_ends = [vars(owner)]
    while open_ends:
        new = [o for o in gc.get_referents(*open_ends) if id(o) not in seen]
        seen |= {id(o): o for o in new}
        open_ends = [o for o in new if not isinstance(o, type | ModuleType | FunctionType)]
    tensors = [o for o in seen.values() if isinstance(o, paddle.Tensor)]
    return {t.data_ptr() for t in tensors}


def test_a_step_holds_no_gradient() -> None:
    params = parameters("float32")
    optimizer = isostep.paddle.SGD(0.5, parameters=params)
    take(optimizer, params, range(1), "float32")
    params[0].optimize_attr["learning_rate"] = 0.5
    take(optimizer, params, range(1), "float32")
    held = held_by(optimizer)
    assert {p.data_ptr() for p in params} <= held
    assert not held & {p.grad.data_ptr() for p in params}


def test_the_bits_do_not_depend_on_the_number_of_threads() -> None:
    wide = paddle.create_parameter([1024, 1024], "float32")
    twin = paddle.create_parameter([1024, 1024], "float32")
    twin.set_value(wide)
    wide.grad = twin.grad = paddle.randn([1024, 1024])
    isostep.paddle.AdamW(0.125, parameters=[wide]).step()
    isostep.set_num_threads(3)
    try:
        isostep.paddle.AdamW(0.125, parameters=[twin]).step()
    finally:
        isostep.set_num_threads(None)
    assert apart([twin], [wide]) == 0.0
