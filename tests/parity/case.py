"""What is compared: cases, their parameters and their gradients.

Both sides read this module, the process that runs a framework and the one that runs isostep, so it
knows neither. All numbers are exact in float32, so that a float64 and a float32 run start from the
same parameters and see the same gradients.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

STEPS = 200
SAVED = (1, 2, 10, 200)
DTYPES = ("float64", "float32")
REQUIRED = "required"
TOLERANCE = 1e-12

Array = NDArray[Any]
Shapes = Mapping[str, tuple[int, ...]]
State = dict[str, dict[str, Array]]

RANKS: Shapes = {
    "scalar": (),
    "vector": (7,),
    "matrix": (6, 5),
    "cube": (3, 4, 5),
    "rank4": (2, 3, 2, 4),
    "conv": (8, 4, 3, 3),
}
"""A parameter of each rank, and one as a convolution has it."""

FEW: Shapes = {name: RANKS[name] for name in ("scalar", "vector", "cube")}
"""Enough where no rule looks at the shape."""


@dataclass(frozen=True)
class Average:
    """A moving average of the parameters; where it starts is the dialect's affair."""

    momentum: float
    every: int | None = None


@dataclass(frozen=True)
class Case:
    """One optimizer with its options, compared over `STEPS` steps.

    Args:
        name: what the test is called.
        rule: isostep's rule.
        arguments: hyperparameters by the framework's own names; both sides are given these.
        class_name: the framework's class or function.
        shapes: the parameters.
        kernels: the layouts of the kernels that must run.
        maximize: ascend.
        clip: kind and threshold of clipping.
        average: a moving average of the parameters.
        without_gradient: parameter -> whether it has no gradient in a step (counted from 1).
        poison: this value is put into one gradient at step 2, and nothing is saved after step 2.
        quirk: name of the dialect's quirk by which the framework's float64 run reads numbers in
            float32, other than the hyperparameters that the dialect lists as such.
        tolerance: of the float64 comparison; wider only under a quirk.
        dtypes: the dtypes that the framework has this case in.
    """

    name: str
    rule: str
    arguments: Mapping[str, Any]
    class_name: str = ""
    shapes: Shapes = field(default_factory=lambda: FEW)
    kernels: tuple[str, ...] = ("flat",)
    maximize: bool = False
    clip: tuple[str, float] | None = None
    average: Average | None = None
    without_gradient: Mapping[str, Callable[[int], bool]] = field(default_factory=dict)
    poison: float | None = None
    quirk: str = ""
    tolerance: float = TOLERANCE
    dtypes: tuple[str, ...] = DTYPES

    def __str__(self) -> str:
        return self.name

    @property
    def framework_class(self) -> str:
        """The framework's class or function."""
        return self.class_name or self.rule

    @property
    def saved(self) -> tuple[int, ...]:
        """The steps after which parameters and slots are compared."""
        return SAVED if self.poison is None else SAVED[:2]

    def parameters(self, dtype: str) -> dict[str, Array]:
        """The parameters before the first step."""
        return {name: _parameter(name, shape).astype(dtype) for name, shape in self.shapes.items()}

    def gradients(self, step: int, dtype: str) -> dict[str, Array | None]:
        """The gradients of a step, counted from 1; None where there is none."""
        found: dict[str, Array | None] = {}
        for name, shape in self.shapes.items():
            absent = self.without_gradient.get(name)
            gradient = _gradient(name, shape, step).astype(dtype)
            if self.poison is not None and step == 2 and name == "vector":
                gradient[3] = self.poison
            found[name] = None if absent is not None and absent(step) else gradient
        return found


def _random(*key: int | str) -> np.random.Generator:
    return np.random.default_rng([crc32(str(part).encode()) for part in key])


def _parameter(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    values = _random("parameter", name).normal(size=shape)
    # The vector's root mean square lies below every eps2 of an Adafactor case.
    small = 0.05 if len(shape) == 1 else 1.0
    return np.asarray(small * values, dtype=np.float32)


@cache
def _gradient(name: str, shape: tuple[int, ...], step: int) -> NDArray[np.float32]:
    """Of several magnitudes, growing and falling over the steps, with zeros among them.

    Those of even steps are small, so that what a slot keeps of the step before is seen beside them.
    """
    random = _random("gradient", name, step)
    magnitude = np.exp(_random("magnitude", name).normal(size=shape))
    trend = _random("trend", name).normal(size=shape)
    values = magnitude * (random.normal(size=shape) + 0.3 * trend)
    values = values * (0.2 + 0.8 * np.cos(step / 40) ** 2) * (1 if step % 2 else 1 / 32)
    values = np.where(random.random(size=shape) < 0.1, 0.0, values)
    if values.size > 1:
        values.flat[1] = 0.0  # an element that never has a gradient
    return np.asarray(values, dtype=np.float32)


# -- the framework's side ------------------------------------------------------------------------


class Runner(Protocol):
    """A framework's optimizer over the parameters of one case."""

    def step(self, gradients: dict[str, Array | None]) -> None:
        """Take one step."""
        ...

    def state(self) -> State:
        """The parameters (`param`), slots by the framework's names, and averages (`average`)."""
        ...


def record(
    path: str,
    cases: Iterable[Case],
    make: Callable[[Case, dict[str, Array], str], Runner],
    probes: Callable[[], dict[str, Array]] = dict,
    dtypes: Iterable[str] = DTYPES,
) -> None:
    """Run all cases through a framework and save what `load` reads.

    Args:
        path: the file to write.
        cases: the cases.
        make: `(case, parameters, dtype) -> runner`.
        probes: what else tests look at, by name.
        dtypes: the dtypes of the parameters, in this order.
    """
    found: dict[str, Array] = {}
    for dtype in dtypes:
        for case in cases:
            if dtype not in case.dtypes:
                continue
            runner = make(case, case.parameters(dtype), dtype)
            for step in range(1, case.saved[-1] + 1):
                runner.step(case.gradients(step, dtype))
                if step in case.saved:
                    for name, arrays in runner.state().items():
                        for slot, array in arrays.items():
                            key = "|".join((case.name, dtype, str(step), name, slot))
                            found[key] = np.array(array)
    found |= {f"probe|{name}": np.asarray(array) for name, array in probes().items()}
    np.savez(path, **found)


def load(path: Path) -> dict[tuple[str, ...], Array]:
    """What `record` wrote: (case, dtype, step, parameter, slot) -> array."""
    with np.load(path) as file:
        return {tuple(key.split("|")): file[key] for key in file.files}


def defaults(functions: Mapping[str, Callable[..., Any]]) -> Array:
    """The defaults of all arguments of functions and constructors, for `record`'s probes."""
    return np.array(
        json.dumps(
            {
                name: {
                    argument.name: REQUIRED
                    if argument.default is argument.empty
                    else argument.default
                    for argument in inspect.signature(function).parameters.values()
                }
                for name, function in functions.items()
            },
            default=repr,
        )
    )
