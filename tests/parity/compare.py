"""isostep over the cases, and the two laws that it is held to.

*Float64*: every element of every parameter and slot agrees with the framework's to `TOLERANCE`,
relative to the largest magnitude that this element has had so far: a parameter that passes zero
keeps the rounding of what it was.

*Float32*: of every parameter and slot, the largest distance of any element to the float64 run is no
larger than that of the framework's own float32 run, plus one float32 ulp of the array's largest
magnitude.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from isostep import dialects
from isostep.numpy import Optimizer
from isostep.recipe import EMA, Clip

from .case import DTYPES, Array, Case, State, load

TOLERANCE = 1e-12
ROOT = Path(__file__).parents[2]


@dataclass
class Run:
    """isostep over one case: states by step, and each element's largest magnitude until then."""

    states: dict[int, State] = field(default_factory=dict)
    magnitudes: dict[int, State] = field(default_factory=dict)
    ran: set[str] = field(default_factory=set)


def make(dialect: str, case: Case, parameters: dict[str, Array]) -> Optimizer:
    """isostep's optimizer for a case; the parameters are updated in place."""
    average = case.average
    # optax' RMSprop has an argument `decay`, which is an option of the NumPy front-end as well.
    arguments = {"alpha" if k == "decay" else k: v for k, v in case.arguments.items()}
    return Optimizer(
        case.rule,
        parameters,
        dialect=dialect,
        engine="native",
        maximize=case.maximize,
        clip=Clip(**{case.clip[0]: case.clip[1]}) if case.clip else None,
        ema=average
        and EMA(average.momentum, average.every, dialects.get(dialect).averaging.start),
        **arguments,
        **case.own,
    )


def run(dialect: str, case: Case, dtype: str) -> Run:
    """isostep over all steps of a case, slots under the framework's names."""
    parameters = case.parameters(dtype)
    optimizer = make(dialect, case, parameters)
    names = {"average": "average"} | dict(dialects.get(dialect).spelling(case.rule).slots)
    result, largest = Run(), {}
    for step in range(case.saved[-1] + 1):
        if step:
            optimizer.step(case.gradients(step, dtype))
            result.ran |= set(optimizer.ran)
        state: State = {
            name: {"param": array} | {names[k]: v for k, v in optimizer.slots(name).items()}
            for name, array in parameters.items()
        }
        for name, slot, array in walk(state):
            before = largest.setdefault(name, {}).get(slot, 0.0)
            largest[name][slot] = np.maximum(before, np.abs(array))
        if step in case.saved:
            result.states[step] = _copy(state)
            result.magnitudes[step] = _copy(largest)
    return result


def walk(state: State) -> Iterator[tuple[str, str, Array]]:
    """(parameter, slot, array) of a state."""
    for name, arrays in state.items():
        for slot, array in arrays.items():
            yield name, slot, array


def _copy(state: State) -> State:
    return {name: {k: np.array(a) for k, a in arrays.items()} for name, arrays in state.items()}
