"""Sparse gradients: their dense meaning, torch's errors, and lazy steps of the rows present."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import isostep

from .twins import FULL, NAMES, Twins, assert_same_bits, bits, make_params, ours

ROWS, WIDTH = 7, 3
TOUCHED = (1, 4, 5)
LAZY = [name for name in NAMES if name != "Adafactor"]


@pytest.fixture(autouse=True)
def unchecked() -> Iterator[None]:
    """torch warns where nobody has said whether sparse tensors are to be checked."""
    with torch.sparse.check_sparse_tensor_invariants(False):
        yield


def sparse(step: int, rows: tuple[int, ...] = (*TOUCHED, 4)) -> Tensor:
    """A gradient with rows out of order, one of them twice."""
    random = torch.Generator().manual_seed(step)
    values = torch.randn(len(rows), WIDTH, generator=random, dtype=torch.float64)
    order = torch.tensor([rows[::-1]])
    return torch.sparse_coo_tensor(order, values, (ROWS, WIDTH))


def table() -> list[nn.Parameter]:
    return make_params(shapes=[(ROWS, WIDTH)])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("SGD", {"lr": 0.1}),
        ("SGD", {"lr": 0.1, "maximize": True}),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.2}),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.1}),
    ],
)
def test_the_dense_meaning_where_torch_has_it(name: str, arguments: dict[str, Any]) -> None:
    twins = Twins(name, table, **arguments)
    for step in range(6):
        assert not sparse(step).is_coalesced()
        twins.a_params[0].grad, twins.b_params[0].grad = sparse(step), sparse(step)
        twins.a.step()
        twins.b.step()
        twins.compare()


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("SGD", "Adagrad")])
def test_torchs_error_where_it_has_none(name: str) -> None:
    for make in (getattr(torch.optim, name), ours(name)):
        params = table()
        optimizer = make(params)
        params[0].grad = sparse(0)
        with pytest.raises(RuntimeError, match="does not support sparse gradients"):
            optimizer.step()
        assert_same_bits(params[0].data, table()[0].data)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("SGD", "Adagrad")])
def test_what_the_error_advises_works(name: str) -> None:
    params = table()
    params[0].grad = sparse(0)
    with pytest.raises(RuntimeError, match=r"lazy=True|to_dense\(\)") as refused:
        ours(name)(params).step()
    lazy = "lazy=True" in str(refused.value)
    if not lazy:
        params[0].grad = params[0].grad.to_dense()
    ours(name)(params, lazy=lazy).step()
    assert not torch.equal(params[0].data, table()[0].data)


def test_torchs_error_for_adagrad_with_decay() -> None:
    for make in (torch.optim.Adagrad, ours("Adagrad")):
        params = table()
        optimizer = make(params, weight_decay=0.1)
        params[0].grad = sparse(0)
        with pytest.raises(RuntimeError, match="not compatible with sparse gradients"):
            optimizer.step()


def test_a_sparse_and_a_dense_gradient_in_one_step() -> None:
    twins = Twins("SGD", lambda: make_params(shapes=[(ROWS, WIDTH), (4,)]), lr=0.1)
    for step in range(3):
        for p, q in (twins.a_params, twins.b_params):
            p.grad, q.grad = sparse(step), torch.ones(4, dtype=torch.float64)
        twins.a.step()
        twins.b.step()
        twins.compare()


class TestLazy:
    """Against an optimizer that has the touched rows alone as its parameter."""

    @staticmethod
    def pair(name: str, **extra: Any) -> tuple[Any, Any, nn.Parameter, nn.Parameter]:
        (whole,) = table()
        part = nn.Parameter(whole.detach()[list(TOUCHED)].clone())
        arguments = FULL[name] | {"weight_decay": 0.1}
        return (
            ours(name)([whole], lazy=True, **arguments, **extra),
            ours(name)([part], **arguments, **extra),
            whole,
            part,
        )

    @pytest.mark.parametrize("name", LAZY)
    def test_touched_rows_step_as_if_they_were_all_and_others_keep_every_bit(
        self, name: str
    ) -> None:
        a, b, whole, part = self.pair(name)
        before = whole.detach().clone()
        rest = [k for k in range(ROWS) if k not in TOUCHED]
        for step in range(5):
            whole.grad = sparse(step)
            part.grad = sparse(step).to_dense()[list(TOUCHED)]
            a.step()
            b.step()
        assert_same_bits(whole.data[list(TOUCHED)], part.data)
        assert_same_bits(whole.data[rest], before[rest])
        for key, kept in b.state[part].items():
            mine = a.state[whole][key]
            if key == "step":
                assert mine == kept == 5
                continue
            assert_same_bits(mine[list(TOUCHED)], kept)
            start = FULL[name].get("initial_accumulator_value", 0.0) if key == "sum" else 0.0
            assert (mine[rest] == start).all()

    def test_a_dense_gradient_steps_all_rows(self) -> None:
        a, b, whole, _ = self.pair("AdamW")
        twin = nn.Parameter(whole.detach().clone())
        b = ours("AdamW")([twin], **FULL["AdamW"] | {"weight_decay": 0.1})
        whole.grad = torch.ones_like(whole)
        twin.grad = torch.ones_like(twin)
        a.step()
        b.step()
        assert_same_bits(bits(a), bits(b))

    def test_an_empty_gradient_changes_no_row_and_is_a_step(self) -> None:
        a, _, whole, _ = self.pair("AdamW")
        before = whole.detach().clone()
        for _ in range(3):
            whole.grad = sparse(0, rows=())
            a.step()
        assert_same_bits(whole.data, before)
        assert a.state[whole]["step"] == 3

    def test_rows_follow_the_order_of_the_steps_they_are_in(self) -> None:
        """Rows that come and go share the parameter's step count, as in torch's SparseAdam."""
        (whole,), (twin,) = table(), table()
        optimizer = ours("Adam")([whole], lazy=True, lr=0.1)
        reference = torch.optim.SparseAdam([twin], lr=0.1, eps=1e-300)
        optimizer.param_groups[0]["eps"] = 0.0  # which sits elsewhere in SparseAdam
        for step in range(8):
            rows = (step % ROWS, (3 * step + 1) % ROWS)
            whole.grad, twin.grad = sparse(step, rows), sparse(step, rows)
            optimizer.step()
            reference.step()
        # Both moments and the update, some ten roundings a step, of values of order one.
        assert torch.allclose(whole, twin, rtol=0, atol=8 * 10 * 2.0**-53)

    def test_a_global_norm_counts_sparse_and_dense_together(self) -> None:
        clip = isostep.Clip(global_norm=0.5)
        params = make_params(shapes=[(ROWS, WIDTH), (4,)])
        twins = make_params(shapes=[(ROWS, WIDTH), (4,)])
        a = ours("SGD")(params, lr=0.1, lazy=True, clip=clip)
        b = torch.optim.SGD(twins, lr=0.1)
        for step in range(3):
            dense = torch.full((4,), 0.3, dtype=torch.float64)
            params[0].grad, params[1].grad = sparse(step), dense.clone()
            twins[0].grad, twins[1].grad = sparse(step).to_dense(), dense.clone()
            nn.utils.clip_grad_norm_(twins, 0.5)
            a.step()
            b.step()
            for p, q in zip(params, twins, strict=True):
                assert torch.allclose(p, q, rtol=1e-14, atol=0)

    def test_the_average_goes_on_for_all_rows(self) -> None:
        (whole,) = table()
        optimizer = ours("SGD")([whole], lr=0.1, lazy=True, ema=0.75)
        average = None
        for step in range(5):
            whole.grad = sparse(step, rows=(step, step + 1))
            optimizer.step()
            now = whole.detach().clone()
            average = now if average is None else 0.75 * average + 0.25 * now
        assert torch.allclose(optimizer.state[whole]["average"], average, rtol=1e-14, atol=1e-15)

    def test_a_non_finite_row_skips_the_whole_step(self) -> None:
        params = make_params(shapes=[(ROWS, WIDTH), (4,)])
        optimizer = ours("AdamW")(params, lazy=True, nonfinite="skip")
        params[0].grad, params[1].grad = sparse(0) * float("inf"), torch.ones_like(params[1])
        before = [p.detach().clone() for p in params]
        optimizer.step()
        assert optimizer.skipped == 1
        assert_same_bits([p.data for p in params], before)

    def test_one_kernel_serves_all_rows_of_all_steps(self) -> None:
        a, _, whole, _ = self.pair("AdamW")
        for step in range(3):
            whole.grad = sparse(step, rows=tuple(range(step + 1)))
            a.step()
            assert a.ran == ["native flat float64"]

    @pytest.mark.parametrize(
        ("name", "make", "why"),
        [
            ("Adafactor", lambda: torch.zeros(ROWS, WIDTH), "as a whole"),
            ("Adafactor", lambda: torch.zeros(ROWS), "as a whole"),
            ("AdamW", lambda: torch.zeros(WIDTH, ROWS).t(), "rows do not lie"),
        ],
    )
    def test_what_has_no_rows_is_refused_by_name(self, name: str, make: Any, why: str) -> None:
        p = nn.Parameter(make().double())
        optimizer = ours(name)([("table", p)], lazy=True)
        p.grad = torch.ones_like(p).to_sparse(1)
        with pytest.raises(isostep.GradientError, match=f"'table'.*{why}"):
            optimizer.step()

    def test_gradients_sparse_along_two_axes_are_refused(self) -> None:
        a, _, whole, _ = self.pair("SGD")
        whole.grad = torch.ones_like(whole).to_sparse(2)
        with pytest.raises(isostep.GradientError, match="2 axes"):
            a.step()

    def test_an_embedding_trains(self) -> None:
        torch.manual_seed(0)
        model = nn.Embedding(50, 4, sparse=True)
        optimizer = ours("AdamW")(model.parameters(), lr=0.05, lazy=True)
        words = torch.tensor([3, 9, 9, 20])
        losses = []
        for _ in range(60):
            optimizer.zero_grad()
            loss = (model(words) - 1.0).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.1 * losses[0]
