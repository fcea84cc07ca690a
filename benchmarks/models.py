"""The parameter lists that are stepped: shapes of real models, filled with random numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks import timm_shapes

Shape = tuple[int, ...]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Model:
    """A named list of parameter shapes.

    Args:
        name: as the command line spells it.
        shapes: the parameters, in PyTorch's axis order.
        tensors, elements: how many there must be.
    """

    name: str
    shapes: tuple[Shape, ...]
    tensors: int
    elements: int

    def __post_init__(self) -> None:
        elements = sum(math.prod(shape) for shape in self.shapes)
        if (len(self.shapes), elements) != (self.tensors, self.elements):
            raise ValueError(f"{self.name} has {len(self.shapes)} tensors of {elements} elements")

    def arrays(self, scale: float, seed: int) -> list[Floats]:
        """Normally distributed float32 arrays, one for each parameter."""
        rng = np.random.default_rng(seed)
        arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in self.shapes]
        for array in arrays:
            array *= np.float32(scale)
        return arrays


def _mini() -> list[Shape]:
    return [(8, 8), (8,), (8, 4, 3, 3), (5,)]


def _tiny() -> list[Shape]:
    return [(64, 64), (64,)] * 250


def _resnet50() -> list[Shape]:
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    inside = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            outside = 4 * width
            shapes += [(width, inside, 1, 1), (width,), (width,)]
            shapes += [(width, width, 3, 3), (width,), (width,)]
            shapes += [(outside, width, 1, 1), (outside,), (outside,)]
            if block == 0:
                shapes += [(outside, inside, 1, 1), (outside,), (outside,)]
            inside = outside
    return [*shapes, (1000, 2048), (1000,)]


def _gpt2() -> list[Shape]:
    width, layers = 768, 12
    layer: list[Shape] = [
        *[(width,)] * 2,
        *[(width, 3 * width), (3 * width,)],
        *[(width, width), (width,)],
        *[(width,)] * 2,
        *[(width, 4 * width), (4 * width,)],
        *[(4 * width, width), (width,)],
    ]
    return [(50257, width), (1024, width), *layer * layers, (width,), (width,)]


def _of_timm(name: str) -> list[Shape]:
    return [tuple(shape) for shape in json.loads(timm_shapes.PATH.read_text())[name]]


_OF_TIMM = {
    "mobilenet_v3": (174, 5_483_032),
    "efficientnet_b0": (213, 5_288_548),
    "vit_s": (152, 22_050_664),
    "convnext_t": (182, 28_589_128),
    "swin_t": (173, 28_288_354),
}
_BUILDERS: dict[str, tuple[Callable[[], list[Shape]], int, int]] = {
    "mini": (_mini, 4, 365),
    "tiny": (_tiny, 500, 1_040_000),
    "resnet50": (_resnet50, 161, 25_557_032),
    "gpt2": (_gpt2, 148, 124_439_808),
    **{name: (partial(_of_timm, name), *counts) for name, counts in _OF_TIMM.items()},
}
NAMES = tuple(_BUILDERS)
DEFAULT = ("tiny", "resnet50", "gpt2")
COLD = ("resnet50", "mobilenet_v3", "efficientnet_b0", "vit_s", "gpt2", "convnext_t", "swin_t")
"""Those of which the first step is measured: networks with many shapes."""


def get(name: str) -> Model:
    """The model of this name."""
    build, tensors, elements = _BUILDERS[name]
    return Model(name, tuple(build()), tensors, elements)
