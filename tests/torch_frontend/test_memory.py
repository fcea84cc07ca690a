"""What an optimizer keeps, and what a step takes beyond it."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import isostep
from isostep.compile.layout import rows_chunks

from ..subprocesses import run
from .memory_worker import RECIPES
from .twins import FULL, NAMES, give, make_grads, make_params, ours

MEBIBYTE = 1 << 20
EXTRAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "clip": isostep.Clip(global_norm=1.0),
        "ema": 0.9,
        "master_weights": True,
        "nonfinite": "skip",
        "report": True,
    },
}


SHAPES = ((), (7,), (6, 10), (2, 3, 5))
CASES = [("plain", torch.float32), ("plain", torch.bfloat16), ("everything", torch.bfloat16)]


@pytest.fixture
def only_new_objects() -> Iterator[None]:
    """Keep what is there already out of the collector's sight: it is a million objects."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("only_new_objects")
@pytest.mark.parametrize(("extras", "dtype"), CASES[::2])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_piles_up_over_a_thousand_steps(name: str, extras: str, dtype: torch.dtype) -> None:
    """Objects that the collector knows are counted by type; of memory blocks, some of which the
    interpreter keeps for itself, there is less than one more for two steps."""
    params = make_params(dtype, SHAPES)
    optimizer = ours(name)(params, **FULL[name], **EXTRAS[extras])
    few = [make_grads(params, step) for step in range(4)]

    def steps(count: int) -> None:
        for step in range(count):
            give(params, few[step % 4])
            optimizer.step()

    def live() -> tuple[Counter[str], int]:
        gc.collect()
        return Counter(type(o).__qualname__ for o in gc.get_objects()), sys.getallocatedblocks()

    steps(20)
    seen = [live(), live()]  # both are there when each is counted anew
    seen[0] = live()
    steps(1000)
    seen[1] = live()
    (before, blocks), (after, more) = seen
    assert after == before
    assert more - blocks < 500


# How many arrays of a parameter's size each keeps.
ARRAYS = {"SGD": 1, "Adagrad": 1, "RMSprop": 3, "Adadelta": 2, "Adam": 3, "AdamW": 2}


def elements_kept(name: str, param: torch.Tensor) -> int:
    if name != "Adafactor" or param.ndim < 2:
        return ARRAYS.get(name, 1) * param.numel()
    rows, columns = param.shape[-2:]
    return param.numel() // columns + param.numel() // rows


@pytest.mark.parametrize(("extras", "dtype"), CASES)
@pytest.mark.parametrize("name", NAMES)
def test_state_takes_exactly_the_bytes_of_its_slots(
    name: str, extras: str, dtype: torch.dtype
) -> None:
    params = make_params(dtype, SHAPES)
    optimizer = ours(name)(params, **FULL[name], **EXTRAS[extras])
    give(params, make_grads(params, 0))
    optimizer.step()
    slot = 4 if extras == "everything" else dtype.itemsize
    expected = 4 * len(params) * (name != "SGD")  # torch's `step`
    for p in params:
        expected += slot * elements_kept(name, p)
        expected += 2 * 4 * p.numel() * (extras == "everything")  # average and master
    tensors = [v for kept in optimizer.state.values() for v in kept.values()]
    assert sum(v.numel() * v.element_size() for v in tensors) == expected
    stored = {v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in tensors}
    assert sum(stored.values()) == expected  # views keep no more alive than they show


@pytest.mark.skipif(
    not (Path("/proc/self/smaps_rollup").exists() and os.access("/proc/self/clear_refs", os.W_OK)),
    reason="needs the memory accounts of Linux",
)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_takes_no_memory_beyond_what_it_works_on(recipe: str) -> None:
    found = run(f"from tests.torch_frontend.memory_worker import main; main({recipe!r})")
    assert found["works on"] > 400e6
    assert found["kept"] + found["in a step"] < MEBIBYTE + found["works on"] // 1000


GPT2 = [(50257, 768), *12 * [(768, 2304), (768, 768), (768, 3072), (3072, 768)]]
LLAMA = [
    *2 * [(32000, 4096)],
    *8 * [*4 * [(4096, 4096)], *2 * [(11008, 4096)], (4096, 11008)],
]
MODELS = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "one matrix": [(4096, 4096)],
    "one large matrix": [(16384, 16384)],
    "a wide head": [*12 * [(2048, 2048)], (2048, 100_000)],
    "experts": [*8 * [(8, 1024, 4096), (8, 4096, 1024)]],
}


@pytest.mark.parametrize("model", MODELS)
def test_sums_per_column_keep_to_the_same_bound(model: str) -> None:
    """The one buffer of a step that grows with the model, in float32 without other slots."""
    shapes = [(1, *s) if len(s) == 2 else s for s in MODELS[model]]
    chunks, _, sums = rows_chunks(shapes, 1)
    bytes_worked_on = sum(2 * 4 * b * r * c for b, r, c in shapes)
    assert 8 * sums <= MEBIBYTE + bytes_worked_on // 1000
    assert len(chunks) >= 12  # enough to share among threads
