"""Small matrices of any size, such as the kernels of convolutions, are stepped by one kernel."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from isostep.compile import machine_code
from isostep.compile.layout import LANES, SHORT_MATRIX

from .table import DTYPES, AnyArray, Config, assert_same_bits, named, state_of

ALL = named("adafactor", "adafactor-torch", "adafactor-optax", "adafactor-bare")
SIZES = [
    (rows, columns)
    for rows in (1, 2, 3, 4, 5, 7, 8, 11, 64)
    for columns in (1, 2, 3, 5, 7, 8, 13)
    if rows * columns <= SHORT_MATRIX
]
BATCHES = (8, LANES, LANES + 7)


def parameters(sizes: list[tuple[int, int]], dtype: str = "float64") -> dict[str, AnyArray]:
    random = np.random.default_rng(3)
    shapes = {f"{n}x{r}x{c}": (n, r, c) for r, c in sizes for n in BATCHES}
    return {k: random.normal(size=shape).astype(DTYPES[dtype]) for k, shape in shapes.items()}


def gradients(params: dict[str, AnyArray], step: int) -> dict[str, AnyArray]:
    random = np.random.default_rng([4, step])
    return {k: random.normal(size=p.shape).astype(p.dtype) for k, p in params.items()}


@pytest.mark.parametrize("config", ALL, ids=str)
def test_every_size_follows_the_oracle(config: Config) -> None:
    params = parameters(SIZES)
    optimizer, oracle = config.optimizer(params), config.oracle(params)
    for step in range(3):
        grads = gradients(params, step)
        oracle.step({k: g * config.loss_scale for k, g in grads.items()}, config.loss_scale)
        optimizer.step(grads)
    for name, value in params.items():
        right = oracle.params[name]
        scale = np.maximum(np.abs(right), np.sqrt(np.mean(right**2)))
        assert np.all(np.abs(value - right) <= 1e-12 * scale), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sizes_of_a_model_take_one_kernel_and_matrices_of_one_element_another(
    dtype: str,
) -> None:
    (config,) = named("adafactor-torch")
    optimizer = config.optimizer(params := parameters(SIZES, dtype))
    optimizer.step(gradients(params, 0))
    compute = "float64" if dtype == "float64" else "float32"
    assert set(optimizer.ran) == {f"native {layout} {compute}" for layout in ("flat", "lanes")}
    assert len(optimizer.ran) == len(set(optimizer.ran))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bits_of_a_matrix_do_not_depend_on_the_sizes_beside_it(dtype: str) -> None:
    (config,) = named("adafactor-torch")
    together, apart = parameters(SIZES, dtype), parameters(SIZES, dtype)
    optimizer = config.optimizer(together)
    others = {name: config.optimizer({name: array}) for name, array in apart.items()}
    for step in range(2):
        grads = gradients(together, step)
        optimizer.step(grads)
        for name, other in others.items():
            other.step({name: grads[name]})
    found: dict[str, AnyArray] = {}
    for name, other in others.items():
        found |= state_of(other, {name: apart[name]})
    assert_same_bits(state_of(optimizer, together), found)


_MOVES = """
from isostep.compile.intrinsics import *
from isostep.compile.staging import *


def move(source, target, size, lanes, context):
    block = {dtype}_scratch(context)
    stage_{width}(source, block, size, lanes)
    unstage_{width}(target, block, size, lanes)
"""
_GUARD = 16  # elements on both sides that must stay as they are


@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("lanes", [1, 7, 8, 9, 63, LANES])
def test_a_block_is_transposed_and_brought_back_and_nothing_else_is_written(
    width: int, lanes: int
) -> None:
    dtype = {2: "float16", 4: "float32", 8: "float64"}[width]
    address = machine_code.build(_MOVES.format(dtype=dtype, width=width)).addresses["move"]
    move = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)(address)
    item: Any = f"u{width}"
    for size in range(1, SHORT_MATRIX + 1):
        source = np.arange(1, size * lanes + 1, dtype=item)
        block = np.zeros(SHORT_MATRIX * LANES, dtype=item)
        target = np.zeros(size * lanes + 2 * _GUARD, dtype=item)
        words = np.array([source.ctypes.data, target[_GUARD:].ctypes.data, size, lanes], "int64")
        row = np.array([words.ctypes.data])
        move(row.ctypes.data, None, None, block.ctypes.data)
        side = block.reshape(SHORT_MATRIX, LANES)
        assert np.array_equal(side[:size, :lanes], source.reshape(lanes, size).T), size
        assert not side[size:].any(), size
        assert not side[:, lanes:].any(), size
        assert np.array_equal(target[_GUARD:-_GUARD], source), size
        assert not target[:_GUARD].any(), size
        assert not target[-_GUARD:].any(), size
