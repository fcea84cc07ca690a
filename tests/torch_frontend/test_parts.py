"""Options that span parameters, in optimizers that hold a part of a model: refused by name.

`ranks_worker` has those whose other parts are known, which are added up.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import isostep
from isostep import dialects

from .twins import give, make_grads, make_params, ours

SPANNING: list[dict[str, Any]] = [
    {"clip": isostep.Clip(global_norm=0.5)},
    {"nonfinite": "skip"},
    {"nonfinite": "raise"},
    {"report": True},
]
OTHERS: list[dict[str, Any]] = [{}, {"clip": isostep.Clip(norm=0.5)}, {"ema": 0.9}]


class Sharded(torch.optim.Optimizer):
    """As fairscale's OSS: an optimizer that makes another one for its own part."""

    def __init__(self, params: list[Any], of: int, **options: Any) -> None:
        super().__init__(params, {"lr": 0.1})
        self.inner = ours("SGD")(params[:of], lr=0.1, **options)


class ZeroRedundancyOptimizer(Sharded):
    """As torch's, which steps as soon as the gradients of some parameters are there."""

    _overlap_with_ddp = True
    join_process_group, join_device = None, "cpu"


class DeepSpeedZeroOptimizer:
    """As DeepSpeed's: it is given an optimizer, and replaces what that steps."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def step(self) -> None:
        self.inner.step()


@pytest.mark.parametrize("options", SPANNING, ids=str)
def test_an_optimizer_made_for_a_part_refuses_them_by_name(options: dict[str, Any]) -> None:
    params = make_params()
    with pytest.raises(isostep.HyperparameterError, match=f"{next(iter(options))}: .*Sharded"):
        Sharded(params, of=2, **options)
    Sharded(params, of=len(params), **options)  # a wrapper that keeps nothing from it
    ours("SGD")(params[:2], lr=0.1, **options)  # a user's own choice of parameters


@pytest.mark.parametrize("options", SPANNING, ids=str)
def test_parts_that_are_not_stepped_all_at_once_refuse_them(options: dict[str, Any]) -> None:
    params = make_params()
    for of in (2, len(params)):  # other processes may have nothing
        with pytest.raises(isostep.HyperparameterError, match="ZeroRedundancyOptimizer gives it"):
            ZeroRedundancyOptimizer(params, of=of, **options)


@pytest.mark.parametrize("options", SPANNING, ids=str)
def test_optimizers_of_remote_parameters_refuse_them(options: dict[str, Any]) -> None:
    class Reference:
        def local_value(self) -> Any:
            return nn.Parameter(torch.ones(3))

    from torch.distributed.optim.optimizer import _LocalOptimizer

    references: Any = [Reference(), Reference()]
    with pytest.raises(isostep.HyperparameterError, match="_LocalOptimizer gives it"):
        _LocalOptimizer(ours("SGD"), references, lr=0.1, **options)
    _LocalOptimizer(ours("SGD"), references, lr=0.1)


@pytest.mark.parametrize("options", OTHERS, ids=str)
def test_what_looks_at_one_parameter_is_free_in_a_part(options: dict[str, Any]) -> None:
    Sharded(make_params(), of=2, **options)


@pytest.mark.parametrize("options", SPANNING, ids=str)
def test_an_optimizer_stepped_by_one_that_shards_refuses_them(options: dict[str, Any]) -> None:
    params = make_params()
    optimizer = ours("AdamW")(params, **options)
    give(params, make_grads(params, 0))
    before = [p.detach().clone() for p in params]
    with pytest.raises(isostep.HyperparameterError, match="DeepSpeedZeroOptimizer"):
        DeepSpeedZeroOptimizer(optimizer).step()
    assert all(map(torch.equal, params, before))
    assert not optimizer.state
    optimizer.step()


@pytest.mark.parametrize("options", [*SPANNING, OTHERS[1]], ids=str)
@pytest.mark.parametrize("mark", dialects.get("torch").shard_marks)
def test_parameters_that_are_marked_as_shards_refuse_them(
    mark: str, options: dict[str, Any]
) -> None:
    params = make_params()
    setattr(params[1], mark, 0 if mark == "ds_id" else True)
    with pytest.raises(isostep.HyperparameterError, match=f"parameter 1 is a shard .*{mark}"):
        ours("SGD")(params, lr=0.1, **options)
    setattr(params[1], mark, False)  # as Megatron marks all others
    optimizer = ours("SGD")(params, lr=0.1, **options)
    setattr(params[1], mark, True)  # wrapped later
    give(params, make_grads(params, 0))
    with pytest.raises(isostep.HyperparameterError, match=mark):
        optimizer.step()
    ours("SGD")(params, lr=0.1)


def test_the_marks_are_those_of_torch() -> None:
    from torch.distributed.fsdp import FlatParameter
    from torch.distributed.fsdp._common_utils import FSDP_FLATTENED

    flat = nn.Parameter(torch.ones(3))
    flat._is_flat_param = True  # type: ignore[attr-defined]
    assert isinstance(flat, FlatParameter)
    assert FSDP_FLATTENED in dialects.get("torch").shard_marks
