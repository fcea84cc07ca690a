"""Memory as torch users have it: layouts, dtypes, views, shared storage."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import isostep
from isostep.torch import SGD, AdamW, binding

from .twins import FULL, NAMES, Twins, assert_same_bits, give, make_grads, make_params, ours

COMPLEX = [name for name in NAMES if name != "Adafactor"]


def test_a_dense_layout_is_stepped_where_it_lies_and_any_other_in_a_copy() -> None:
    torch.manual_seed(0)
    last = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    tensors = {
        "contiguous": (torch.randn(4, 5), False),
        "transposed": (torch.randn(5, 4).t(), False),
        "channels_last": (last, False),
        "row of a matrix": (torch.randn(5, 4)[1], False),
        "column of a matrix": (torch.randn(5, 4)[:, 1], True),
        "every other row": (torch.randn(6, 4)[::2], True),
        "0-d": (torch.randn(()), False),
        "empty": (torch.randn(0, 3), False),
    }
    named = [(name, nn.Parameter(t)) for name, (t, _) in tensors.items()]
    entries = AdamW(named).plan().entries
    assert {e.name: e.staged for e in entries} == {n: s for n, (_, s) in tensors.items()}


@pytest.mark.parametrize("name", ["AdamW", "Adafactor"])
def test_state_lies_in_memory_as_torchs_does(name: str) -> None:
    def make() -> list[nn.Parameter]:
        torch.manual_seed(0)
        last = torch.randn(6, 4, 3, 3, dtype=torch.float64)
        return [
            nn.Parameter(last.to(memory_format=torch.channels_last)),
            nn.Parameter(torch.randn(5, 4, dtype=torch.float64).t()),
        ]

    twins = Twins(name, make)
    twins.run(2)
    for p, q in zip(twins.a_params, twins.b_params, strict=True):
        for key, value in twins.a.state[p].items():
            assert twins.b.state[q][key].stride() == value.stride(), key


@pytest.mark.parametrize("name", NAMES)
def test_gradients_in_any_order_of_memory(name: str) -> None:
    twins = Twins(name, lambda: make_params(shapes=[(4, 6), (6, 4, 3, 3), (3,)]))
    for step in range(4):
        matrix, kernel, vector = make_grads(twins.a_params, step)
        grads = [
            matrix.t().contiguous().t(),
            kernel.to(memory_format=torch.channels_last),
            torch.stack([vector, vector], dim=1)[:, 0],
        ]
        twins.a_params[0].grad, twins.b_params[0].grad = grads[0], grads[0].clone()
        for p, q, g in zip(twins.a_params, twins.b_params, grads, strict=True):
            p.grad, q.grad = g, g
        twins.a.step()
        twins.b.step()
        twins.compare()


@pytest.mark.parametrize("name", NAMES)
def test_averages_of_parameters_stepped_in_a_copy_follow(name: str) -> None:
    """Adafactor wants rows along the last axis, whatever the order of memory."""
    torch.manual_seed(0)
    wide = torch.randn(6, 8, dtype=torch.float64)
    params = [nn.Parameter(wide.clone()[::2].t()), nn.Parameter(wide.clone().t())]
    plain = [nn.Parameter(p.detach().clone().contiguous()) for p in params]
    optimizers = [ours(name)(each, **FULL[name], ema=0.5) for each in (params, plain)]
    for step in range(3):
        for each, optimizer in zip((params, plain), optimizers, strict=True):
            give(each, make_grads(plain, step))
            optimizer.step()
    for p, q in zip(params, plain, strict=True):
        assert_same_bits(p.data.contiguous(), q.data)
        a, b = (o.state[x]["average"] for o, x in zip(optimizers, (p, q), strict=True))
        assert_same_bits(a.contiguous(), b)


def test_an_empty_parameter_is_counted_as_torch_counts_it() -> None:
    Twins("AdamW", lambda: make_params(shapes=[(0, 3), (2,), (0,)])).run(2)
    Twins("Adagrad", lambda: make_params(shapes=[(0, 3)])).run(2)


class TestComplex:
    @staticmethod
    def make() -> list[nn.Parameter]:
        real = make_params(shapes=[(2,), (2, 5), (2, 3, 4)])
        return [nn.Parameter(torch.complex(p[0].detach(), p[1].detach())) for p in real]

    @pytest.mark.parametrize("name", COMPLEX)
    def test_follows_torch(self, name: str) -> None:
        Twins(name, self.make, **FULL[name]).run(5)

    @pytest.mark.parametrize("name", COMPLEX)
    def test_is_its_real_view(self, name: str) -> None:
        params = self.make()
        views = [nn.Parameter(torch.view_as_real(p.detach()).clone()) for p in params]
        optimizers = [ours(name)(each, **FULL[name]) for each in (params, views)]
        for step in range(4):
            grads = make_grads(params, step)
            give(params, grads)
            give(views, [torch.view_as_real(g) for g in grads])
            for optimizer in optimizers:
                optimizer.step()
        for p, q in zip(params, views, strict=True):
            assert_same_bits(torch.view_as_real(p.data), q.data)

    def test_a_lazily_conjugated_gradient_is_read_as_what_it_means(self) -> None:
        twins = Twins("AdamW", self.make)
        for step in range(3):
            grads = make_grads(twins.a_params, step)
            for p, q, g in zip(twins.a_params, twins.b_params, grads, strict=True):
                p.grad, q.grad = g.conj().resolve_conj(), g.conj()  # torch refuses the other
                assert q.grad.is_conj()
            twins.a.step()
            twins.b.step()
            twins.compare()

    def test_slots_start_in_both_parts(self) -> None:
        params = self.make()
        optimizer = ours("Adagrad")(params, initial_accumulator_value=0.25, state_dtype="float32")
        assert optimizer.state[params[0]]["sum"] == 0.25 + 0.25j


class TestLowPrecision:
    """The arithmetic is float32, with one rounding at the end."""

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("name", NAMES)
    def test_state_has_torchs_dtypes_and_the_step_is_at_least_as_near(
        self, name: str, dtype: torch.dtype
    ) -> None:
        arguments = {k: v for k, v in FULL[name].items() if k != "centered"}
        twins = Twins(name, lambda: make_params(dtype), **arguments)
        exact = Twins(name, lambda: [nn.Parameter(p.double()) for p in make_params(dtype)])
        for group, wanted in zip(exact.a.param_groups, twins.a.param_groups, strict=True):
            group.update({k: v for k, v in wanted.items() if k != "params"})
        exact.b = exact.a
        for step in range(8):
            grads = make_grads(twins.a_params, step)
            twins.give(grads)
            give(exact.a_params, [g.double() for g in grads])
            twins.a.step()
            twins.b.step()
            exact.a.step()
        for p, q in zip(twins.a_params, twins.b_params, strict=True):
            kinds = [
                {k: v.dtype for k, v in o.state[x].items() if v is not None}
                for o, x in ((twins.a, p), (twins.b, q))
            ]
            assert kinds[0] == kinds[1]
        torchs, mine = (
            torch.cat([(p.double() - e).flatten() for p, e in zip(ps, exact.a_params, strict=True)])
            for ps in (twins.a_params, twins.b_params)
        )
        ulp = torch.finfo(dtype).eps * max(p.abs().max().item() for p in exact.a_params)
        assert mine.square().mean().sqrt() <= torchs.square().mean().sqrt() + ulp

    def test_mixed_dtypes_in_one_group(self) -> None:
        dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64)
        params = [nn.Parameter(torch.ones(4, dtype=dtype)) for dtype in dtypes]
        optimizer = AdamW(params, lr=0.125, weight_decay=0.0)
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        assert len(optimizer.ran) == 4  # complex64 shares float32's kernel
        for p in params:
            assert torch.allclose(
                torch.view_as_real(p)[..., 0] if p.is_complex() else p.double(),
                torch.tensor(0.875, dtype=torch.float32 if p.is_complex() else torch.float64),
                rtol=2**-8,
            )
            assert optimizer.state[p]["exp_avg"].dtype == p.dtype


class TestSharedStorage:
    def test_tied_weights_are_one_parameter(self) -> None:
        def make() -> tuple[nn.Embedding, nn.Linear]:
            torch.manual_seed(0)
            embedding, head = nn.Embedding(5, 3).double(), nn.Linear(3, 5, bias=False).double()
            head.weight = embedding.weight
            return embedding, head

        models = [make(), make()]
        params = iter([list(nn.ModuleList(m).parameters()) for m in models])
        twins = Twins("AdamW", lambda: next(params), **FULL["AdamW"])
        for _ in range(4):
            for embedding, head in models:
                embedding.zero_grad()
                head(embedding(torch.tensor([0, 2, 2]))).square().sum().backward()
            twins.a.step()
            twins.b.step()
            twins.compare()

    def test_parameters_that_are_pieces_of_one_storage(self) -> None:
        def make() -> list[nn.Parameter]:
            torch.manual_seed(0)
            flat = torch.randn(24, dtype=torch.float64)
            return [nn.Parameter(flat[:10].view(2, 5)), nn.Parameter(flat[10:])]

        Twins("AdamW", make, **FULL["AdamW"]).run(4)

    @pytest.mark.parametrize("name", NAMES)
    def test_parameters_over_the_same_memory_are_stepped_one_after_the_other(
        self, name: str
    ) -> None:
        def make() -> list[nn.Parameter]:
            torch.manual_seed(0)
            flat = torch.randn(24, dtype=torch.float64)
            free = torch.randn(3, dtype=torch.float64)
            parts = [flat, free, flat.view(4, 6), flat[3:9]]
            return [nn.Parameter(part) for part in parts]

        twins = Twins(name, make, **FULL[name])
        twins.run(5)
        kernels = 1 if name == "Adafactor" else 3  # it measures a parameter before it steps it
        assert len(twins.b.ran) == kernels
        assert (twins.b.ran == ["torch.optim"]) == (name == "Adafactor")

    @pytest.mark.parametrize("name", NAMES)
    def test_array_code_leaves_parameters_over_the_same_memory_to_torch(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(binding, "choose_engine", lambda *_: "array")

        def make() -> list[nn.Parameter]:
            torch.manual_seed(0)
            flat = torch.randn(24, dtype=torch.float64)
            apart = torch.randn(3, dtype=torch.float64)
            return [nn.Parameter(part) for part in [flat[:12], apart, flat[8:]]]

        twins = Twins(name, make, **FULL[name])
        twins.run(3)
        assert twins.b.ran == ["torch.optim"]
        assert "torch.optim's own step" in str(twins.b.plan())

    def test_interleaved_views_are_not_taken_for_the_same_memory(self) -> None:
        def make() -> list[nn.Parameter]:
            torch.manual_seed(0)
            wide = torch.randn(6, 8, dtype=torch.float64)
            return [nn.Parameter(wide[:, ::2]), nn.Parameter(wide[:, 1::2])]

        twins = Twins("AdamW", make, **FULL["AdamW"])
        twins.run(3)
        assert len(twins.b.ran) == 1

    def test_shared_memory_that_cannot_be_stepped_in_order_is_refused(self) -> None:
        wide = torch.randn(6, 8)
        params = [nn.Parameter(wide), nn.Parameter(wide[:, ::2])]
        optimizer = SGD(params)
        for p in params:
            p.grad = torch.ones_like(p)
        with pytest.raises(isostep.ParameterError, match="share memory"):
            optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_the_array_engine_follows_torch_in_any_layout(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine of other devices, here on the CPU."""

    def make() -> list[nn.Parameter]:
        torch.manual_seed(0)
        last = torch.randn(4, 3, 2, 2, dtype=torch.float64)
        odd = [last.to(memory_format=torch.channels_last), last[0, 0].t().clone()]
        return make_params() + [nn.Parameter(p) for p in odd]

    twins = Twins(name, make, **FULL[name])
    monkeypatch.setattr(binding, "choose_engine", lambda *_: "array")
    twins.run(4)
    assert {ran.split()[0] for ran in twins.b.ran} == {"array"}


def test_large_gradients_of_views_stay_alive_through_the_step() -> None:
    params = make_params(torch.float32, shapes=[(300, 300)])
    optimizer = SGD(params, lr=1.0)
    before = params[0].detach().clone()
    grad: Tensor = torch.randn(300, 300)
    params[0].grad = grad.t()
    optimizer.step()
    assert torch.equal(params[0], before - grad.t())
