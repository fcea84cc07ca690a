"""Sparse gradients of embeddings, `SelectedRows`: dense in meaning without `lazy_mode`."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
from paddle.nn import ClipGradByGlobalNorm, ClipGradByNorm, ClipGradByValue

import isostep.paddle
from isostep.errors import GradientError

from .twins import OURS, RULES, apart

BATCHES: list[list[int]] = [[1, 1, 4], [0], [4, 4, 4], [1, 2]]
"""Rows by step; some twice, row 3 never."""


def trained(
    classes: Any,
    name: str,
    sparse: bool,
    batches: list[list[int]] = BATCHES,
    groups: Any = lambda params: params,
    dtype: str = "float64",
    first: int = 0,
    **options: Any,
) -> tuple[Any, Any]:
    """An embedding after some steps, and its optimizer.

    Args:
        first: steps that the optimizer believes to have had before.
    """
    paddle.set_default_dtype(dtype)
    try:
        return _trained(classes, name, sparse, batches, groups, first, options)
    finally:
        paddle.set_default_dtype("float32")


def _trained(
    classes: Any,
    name: str,
    sparse: bool,
    batches: list[list[int]],
    groups: Any,
    first: int,
    options: dict[str, Any],
) -> tuple[Any, Any]:
    with paddle.utils.unique_name.guard():
        layer = paddle.nn.Embedding(5, 3, sparse=sparse)
        start = np.random.default_rng(0).normal(size=(5, 3))
        layer.weight.set_value(start.astype(paddle.get_default_dtype()))
        optimizer = getattr(classes, name)(parameters=groups(layer.parameters()), **options)
    if first:
        (layer(paddle.zeros([1], "int64")) * 0.0).sum().backward()
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
    weights = paddle.to_tensor(np.random.default_rng(1).normal(size=3), paddle.get_default_dtype())
    for rows in batches:
        (layer(paddle.to_tensor(rows, "int64")) * weights).sum().backward()
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
    return layer.weight, optimizer


@pytest.mark.parametrize("engine", ["native", "array"])
@pytest.mark.parametrize("name", OURS)
def test_sparse_gradients_mean_the_dense_ones(name: str, engine: str) -> None:
    options = OURS[name] | {"engine": engine, "grad_clip": ClipGradByGlobalNorm(0.5)}
    if name == "Adam":  # which does not decay rows
        del options["weight_decay"]
    one, _ = trained(isostep.paddle, name, True, **options)
    two, _ = trained(isostep.paddle, name, False, **options)
    assert apart([two], [one]) < 1e-14


@pytest.mark.parametrize("name", ["SGD", "Momentum"])
def test_they_are_paddles_where_paddle_takes_them(name: str) -> None:
    options = {k: v for k, v in RULES[name].items() if k != "weight_decay"}
    theirs, _ = trained(paddle.optimizer, name, True, **options)
    ours, _ = trained(isostep.paddle, name, True, **options)
    assert apart([theirs], [ours]) < 1e-12


@pytest.mark.parametrize("lazy", [False, True])
def test_adam_is_paddles_but_for_the_count_of_its_sparse_kernel(lazy: bool) -> None:
    """On the CPU that kernel multiplies the powers of the betas before it reads them, so that it is
    a step ahead of Paddle's dense kernel, whose count isostep keeps to."""
    options = {k: v for k, v in RULES["Adam"].items() if k != "weight_decay"} | {"lazy_mode": lazy}
    theirs, _ = trained(paddle.optimizer, "Adam", True, **options)
    ours, optimizer = trained(isostep.paddle, "Adam", True, first=1, **options)
    assert optimizer.ran == ["native flat float64"]
    # Without lazy_mode its epsilon, 1e-8 beside roots near 1, goes by the other count.
    assert apart([theirs], [ours]) < (1e-12 if lazy else 1e-8)


@pytest.mark.parametrize("classes", [paddle.optimizer, isostep.paddle])
@pytest.mark.parametrize("lazy", [False, True])
def test_adam_does_not_decay_rows(classes: Any, lazy: bool) -> None:
    with pytest.raises(RuntimeError, match=r"weight_decay .*sparse"):
        trained(classes, "Adam", True, lazy_mode=lazy, weight_decay=0.5)


def test_absent_rows_neither_move_nor_decay_and_keep_their_moments() -> None:
    start, _ = trained(isostep.paddle, "AdamW", True, batches=[])
    weight, optimizer = trained(isostep.paddle, "AdamW", True, lazy_mode=True, weight_decay=0.5)
    moved = np.abs((weight - start).numpy()).max(axis=1) > 0
    assert moved.tolist() == [True, True, True, False, True]
    kept = optimizer._accumulators["moment1"][weight.name].numpy()
    assert (np.abs(kept).max(axis=1) > 0).tolist() == moved.tolist()


def test_rows_present_are_stepped_as_in_a_dense_step() -> None:
    """All rows at once, in a lazy step and in a dense one, with the count of the parameter."""
    batches = [[0, 1, 2, 3, 4, 4], [4, 3, 2, 1, 0, 0]]
    lazy, one = trained(isostep.paddle, "AdamW", True, batches, lazy_mode=True, **RULES["AdamW"])
    dense, two = trained(isostep.paddle, "AdamW", False, batches, **RULES["AdamW"])
    assert apart([dense], [lazy]) < 1e-14
    assert one.state_dict()["isostep"]["steps"] == two.state_dict()["isostep"]["steps"]


@pytest.mark.parametrize("clip", [ClipGradByGlobalNorm(0.5), ClipGradByValue(0.25)])
def test_lazy_rows_are_clipped_with_duplicates_summed(clip: Any) -> None:
    batches = [[0, 1, 2, 3, 4, 4]]
    lazy, _ = trained(isostep.paddle, "Adam", True, batches, lazy_mode=True, grad_clip=clip)
    dense, _ = trained(isostep.paddle, "Adam", False, batches, grad_clip=clip)
    assert apart([dense], [lazy]) < 1e-14


def test_the_norm_of_a_sparse_gradient_is_clipped_before_lazy_rows() -> None:
    how: dict[str, Any] = {"dtype": "float32", "grad_clip": ClipGradByNorm(0.5)}
    lazy, _ = trained(isostep.paddle, "Adam", True, [[0, 1, 2, 3, 4, 4]], lazy_mode=True, **how)
    dense, _ = trained(isostep.paddle, "Adam", False, [[0, 1, 2, 3, 4, 4]], **how)
    assert apart([dense], [lazy]) < 1e-6


def test_a_lazy_average_goes_on_for_the_rows_present() -> None:
    weight, optimizer = trained(isostep.paddle, "AdamW", True, lazy_mode=True, ema=0.5)
    average = optimizer._accumulators["average"][weight.name].numpy()
    assert np.abs(average - weight.numpy())[3].max() == 0.0  # never moved
    assert np.abs(average - weight.numpy())[4].max() > 0.0


def test_lazy_mode_can_be_a_groups() -> None:
    start, _ = trained(isostep.paddle, "AdamW", True, batches=[])
    weight, _ = trained(
        isostep.paddle, "AdamW", True, groups=lambda p: [{"params": p, "lazy_mode": True}]
    )
    assert np.abs((weight - start).numpy())[3].max() == 0.0


def test_a_lazy_step_without_decay_of_a_dense_gradient_is_a_step() -> None:
    lazy, _ = trained(isostep.paddle, "AdamW", False, lazy_mode=True)
    plain, _ = trained(isostep.paddle, "AdamW", False)
    assert apart([plain], [lazy]) == 0.0


def test_low_precision_rows_are_stepped() -> None:
    paddle.set_default_dtype("float32")
    weight = paddle.create_parameter(
        [5, 3], "bfloat16", default_initializer=paddle.nn.initializer.Constant(1.0)
    )
    optimizer = isostep.paddle.AdamW(0.5, parameters=[weight], lazy_mode=True, multi_precision=True)
    out = paddle.nn.functional.embedding(paddle.to_tensor([1, 1]), weight, sparse=True)
    out.astype("float32").sum().backward()
    assert weight.grad.is_selected_rows()
    optimizer.step()
    moved = np.abs(weight.astype("float32").numpy() - 1.0).max(axis=1) > 0
    assert moved.tolist() == [False, True, False, False, False]


def test_empty_rows_are_a_step() -> None:
    weight, optimizer = trained(isostep.paddle, "AdamW", True, lazy_mode=True)
    before = weight.numpy()
    rows = paddle.zeros([0], "int64")
    out = paddle.nn.functional.embedding(rows, weight, sparse=True)
    out.sum().backward()
    optimizer.step()
    np.testing.assert_array_equal(before, weight.numpy())
    assert optimizer.state_dict()["isostep"]["steps"][weight.name] == len(BATCHES) + 1


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("width", [3, 4])
def test_rows_that_a_parameter_does_not_have_are_refused(width: int, lazy: bool) -> None:
    weight, optimizer = trained(isostep.paddle, "Adam", True, lazy_mode=lazy)
    other = paddle.nn.Embedding(9, width, sparse=True)
    other(paddle.to_tensor([8 if width == 3 else 0])).sum().backward()
    before = weight.numpy()
    with pytest.raises(GradientError, match="rows"):
        optimizer.apply_gradients([(weight, other.weight._grad_ivar())])
    np.testing.assert_array_equal(before, weight.numpy())


def test_a_gradient_of_another_shape_is_refused() -> None:
    weight, optimizer = trained(isostep.paddle, "AdamW", False)
    before = weight.numpy()
    with pytest.raises(GradientError, match="shape"):
        optimizer.apply_gradients([(weight, paddle.ones([4, 3], "float64"))])
    np.testing.assert_array_equal(before, weight.numpy())
