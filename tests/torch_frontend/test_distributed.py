"""Two processes that share gradients, and states that are saved by name."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import isostep

from ..fuzzing import runs
from ..subprocesses import results, run, start
from .distributed_worker import WORLD, furthest, make_model, train
from .twins import FULL, NAMES, TOLERANCE, assert_same_bits, bits, ours, theirs

MAKERS = {"theirs": theirs, "ours": ours}
WORKER = """
import json
from tests.torch_frontend.distributed_worker import main
print(json.dumps(main({rank}, {file!r})))
"""


RANKS_WORKER = """
import json
from tests.torch_frontend.ranks_worker import main
print(json.dumps(main({rank}, {file!r}, {world}, {strikes})))
"""


def together(sources: list[str]) -> list[Any]:
    """The results of processes that work together."""
    return results([start(source, OMP_NUM_THREADS="1") for source in sources])


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_two_processes_follow_torch_and_one(tmp_path: Path) -> None:
    file = str(tmp_path / "rendezvous")
    found = together([WORKER.format(rank=k, file=file) for k in range(WORLD)])
    assert found[0] == found[1]
    assert len(found[0]["followed"]) == 2 * len(NAMES)
    for what, far in found[0]["followed"].items():
        assert max(far) <= TOLERANCE, what
    assert found[0]["extras"] <= TOLERANCE


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.fuzz
def test_parts_of_a_model_are_clipped_and_skipped_as_a_whole(world: int, tmp_path: Path) -> None:
    of_all = {"file": str(tmp_path / "rendezvous"), "world": world, "strikes": runs(40)}
    found = together([RANKS_WORKER.format(rank=k, **of_all) for k in range(world)])
    assert found == list(range(world))


class TestStateByName:
    """`get_optimizer_state_dict` and `set_optimizer_state_dict` in one process."""

    def _made(self, make: str, name: str) -> tuple[nn.Module, Any]:
        model = make_model()
        return model, MAKERS[make](name)(model.parameters(), **FULL[name])

    @pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
    @pytest.mark.parametrize(
        ("first", "second"), [("ours", "ours"), ("theirs", "ours"), ("ours", "theirs")]
    )
    @pytest.mark.parametrize("name", NAMES)
    def test_it_goes_on_in_either(self, name: str, first: str, second: str, flat: bool) -> None:
        options = StateDictOptions(flatten_optimizer_state_dict=flat)
        model, optimizer = self._made(first, name)
        train(model, optimizer, range(3))
        # Neither copies tensors: what is loaded would be the first optimizer's own state.
        saved = deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
        resumed, fresh = self._made(second, name)
        resumed.load_state_dict(model.state_dict())
        set_optimizer_state_dict(resumed, fresh, saved, options=options)
        for k in (model, optimizer), (resumed, fresh):
            train(*k, range(3, 6))
        if first == second:
            assert_same_bits(bits(fresh), bits(optimizer))
        assert furthest(model, resumed) <= TOLERANCE

    @pytest.mark.parametrize("name", NAMES)
    def test_its_layout_is_torchs(self, name: str) -> None:
        layouts = []
        for make in MAKERS:
            model, optimizer = self._made(make, name)
            train(model, optimizer, range(2))
            saved = get_optimizer_state_dict(model, optimizer)
            layouts.append(
                {
                    name: {k: (v.shape, v.dtype) for k, v in kept.items() if v is not None}
                    for name, kept in saved["state"].items()
                }
            )
            layouts[-1]["groups"] = {k for group in saved["param_groups"] for k in group}
        assert layouts[0] == layouts[1]

    @pytest.mark.parametrize(
        "extras",
        [
            {"ema": 0.9},
            {"ema": isostep.EMA(0.9, overwrite_every=4), "clip": isostep.Clip(global_norm=0.5)},
            {"dialect": "keras"},
            {"master_weights": True, "state_dtype": "float32"},
        ],
        ids="-".join,
    )
    def test_what_torch_does_not_have_goes_with_it(self, extras: dict[str, Any]) -> None:
        def made() -> tuple[nn.Module, Any]:
            model = make_model().to(torch.bfloat16 if "master_weights" in extras else None)
            return model, ours("AdamW")(model.parameters(), **FULL["AdamW"], **extras)

        def go(model: nn.Module, optimizer: Any, steps: range) -> None:
            for step in steps:
                for k, p in enumerate(model.parameters()):
                    random = torch.Generator().manual_seed(100 * step + k)
                    p.grad = torch.randn(p.shape, generator=random).to(p.dtype)
                optimizer.step()

        model, optimizer = made()
        go(model, optimizer, range(3))
        resumed, fresh = made()
        saved = deepcopy(get_optimizer_state_dict(model, optimizer))
        resumed.load_state_dict(model.state_dict())
        set_optimizer_state_dict(resumed, fresh, saved)
        go(model, optimizer, range(3, 7))
        go(resumed, fresh, range(3, 7))
        assert_same_bits(bits(fresh), bits(optimizer))

    @pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
    def test_it_goes_through_files(self, tmp_path: Path) -> None:
        model, optimizer = self._made("ours", "AdamW")
        train(model, optimizer, range(3))
        saved = {"optimizer": get_optimizer_state_dict(model, optimizer)}
        dcp.save(saved, checkpoint_id=tmp_path, no_dist=True)
        resumed, fresh = self._made("ours", "AdamW")
        resumed.load_state_dict(model.state_dict())
        loaded = {"optimizer": get_optimizer_state_dict(resumed, fresh)}
        dcp.load(loaded, checkpoint_id=tmp_path, no_dist=True)
        set_optimizer_state_dict(resumed, fresh, loaded["optimizer"])
        for k in (model, optimizer), (resumed, fresh):
            train(*k, range(3, 6))
        assert_same_bits(bits(fresh), bits(optimizer))


ALONE = """
import json
import torch
import torch.distributed as dist
import isostep.torch

dist.init_process_group("gloo", init_method="file://{file}", rank=0, world_size=1)


def by_a_collective(made):
    from torch.distributed import _functional_collectives as collectives

    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(9)]
    optimizer = made(params, lr=0.1)
    for _ in range(2):
        for p in params:
            g = torch.arange(3.0)
            p.grad = collectives.all_reduce(g, "sum", dist.group.WORLD)
        optimizer.step()
    return params[0].tolist(), getattr(optimizer, "ran", [])


def sharded(made):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    optimizer = made(model.parameters(), lr=0.1)
    for _ in range(2):
        model(torch.ones(3, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.weight.full_tensor().tolist(), getattr(optimizer, "ran", [])


classes = torch.optim.AdamW, isostep.torch.AdamW
print(json.dumps([[each(made) for made in classes] for each in (by_a_collective, sharded)]))
dist.destroy_process_group()
"""


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_gradients_of_collectives_are_waited_for_and_shards_are_torchs_to_step(
    tmp_path: Path,
) -> None:
    by_a_collective, sharded = run(ALONE.format(file=tmp_path / "rendezvous"))
    assert by_a_collective[0][0] == pytest.approx(by_a_collective[1][0], rel=1e-6)
    assert by_a_collective[1][1] == ["native flat float32"]
    assert sharded[0][0] == sharded[1][0]
    assert sharded[1][1] == ["torch.optim"]
