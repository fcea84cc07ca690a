"""isostep over the cases, and the two laws that it is held to.

*Float64*: every element of every parameter and slot agrees with the framework's to `TOLERANCE`,
relative to the largest magnitude that this element has had so far: a parameter that passes zero
keeps the rounding of what it was.

*Float32*: the distance of a float32 run to the float64 run is no larger than that of the
framework's own float32 run, plus one ulp. Distance is the root mean square over all elements of a
slot (of all parameters of the case, at all saved steps), each in float32 ulps of the largest
magnitude in its array; arrays of one element, which may pass zero, have no such scale and are left
out. The maximum would be a draw of luck: two roundings of equal quality differ in it by several
ulps.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from isostep import dialects, rules
from isostep.dialects import Dialect
from isostep.numpy import Optimizer
from isostep.recipe import EMA, Clip

from .case import REQUIRED, Array, Case, State, load

ROOT = Path(__file__).parents[2]
Reference = dict[tuple[str, ...], Array]


def reference(framework: str, path: Path, *classes: str, **environment: str) -> Reference:
    """What the real framework computes, in a process of its own.

    Args:
        framework: whose `*_reference` module runs.
        path: a file to keep the arrays in; where several processes test, the first makes it.
        *classes: a module whose classes stand in the place of the framework's.
        **environment: variables of the framework's process.
    """
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            unfinished = path.with_suffix(".unfinished.npz")
            _run_framework(framework, [str(unfinished), *classes], environment)
            unfinished.rename(path)
    return load(path)


def _run_framework(framework: str, arguments: list[str], environment: dict[str, str]) -> None:
    module = f"tests.parity.{framework}_reference"
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    quiet = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **quiet, **environment},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, f"the run of {framework} failed:\n{done.stderr[-4000:]}"


@dataclass
class Run:
    """isostep over one case: states by step, and each element's largest magnitude until then."""

    states: dict[int, State] = field(default_factory=dict)
    magnitudes: dict[int, State] = field(default_factory=dict)
    ran: set[str] = field(default_factory=set)


def make(
    dialect: str | Dialect, case: Case, parameters: dict[str, Array], rounded: bool = False
) -> Optimizer:
    """isostep's optimizer for a case; the parameters are updated in place.

    Args:
        rounded: round to float32 what the framework holds in float32.
    """
    average = case.average
    spelled = dialects.get(dialect)
    spelling = spelled.spelling(case.framework_class)
    # Resolved here, as a framework may have several classes for one rule.
    values = spelling.resolve(rules.get(case.rule), case.arguments)
    if rounded:
        values |= {name: float(np.float32(values[name])) for name in spelling.in_float32}
    ema = None
    if average is not None:
        start = spelled.averaging.start
        ema = EMA(average.momentum, overwrite_every=average.every, start=start)
    return Optimizer(
        case.rule,
        parameters,
        dialect=spelled,
        engine="native",
        maximize=case.maximize,
        clip=Clip(**{case.clip[0]: case.clip[1]}) if case.clip else None,
        ema=ema,
        **values,
    )


def run(dialect: str | Dialect, case: Case, dtype: str, rounded: bool = False) -> Run:
    """isostep over all steps of a case, slots under the framework's names."""
    parameters = case.parameters(dtype)
    optimizer = make(dialect, case, parameters, rounded)
    spelling = dialects.get(dialect).spelling(case.framework_class)
    names = {"average": "average", **spelling.slots}
    result, largest = Run(), State()
    for step in range(case.saved[-1] + 1):
        if step:
            optimizer.step(case.gradients(step, dtype))
            result.ran |= set(optimizer.ran)
        state: State = {
            name: {"param": array} | {names[k]: v for k, v in optimizer.slots(name).items()}
            for name, array in parameters.items()
        }
        for name, slot, array in _walk(state):
            before = largest.setdefault(name, {}).get(slot, 0.0)
            largest[name][slot] = np.maximum(before, np.abs(array))
        if step in case.saved:
            result.states[step] = _copy(state)
            result.magnitudes[step] = _copy(largest)
    return result


def assert_float64(
    dialect: str,
    case: Case,
    theirs: Reference,
    *,
    extra: frozenset[str] = frozenset(),
    tolerance: float | None = None,
) -> None:
    """The float64 law.

    Args:
        extra: slots of the framework that isostep does without.
        tolerance: in place of the case's.
    """
    ours = run(dialect, case, "float64", rounded=True)
    assert ours.ran == {f"native {layout} float64" for layout in case.kernels}
    _assert_same_slots(case, "float64", ours, theirs, extra)
    error, where = worst(case, ours, theirs)
    limit = case.tolerance if tolerance is None else tolerance
    assert error <= limit, f"{where}: relative error {error:.2e} > {limit:.0e}"


def worst(case: Case, ours: Run, theirs: Reference) -> tuple[float, tuple[int, str, str]]:
    """The largest relative error of a float64 run, and its step, parameter and slot."""
    return max(
        (_error(array, expected, ours.magnitudes[step][name][slot]), (step, name, slot))
        for step, name, slot, array, expected in _pairs(case, "float64", ours, theirs)
    )


def assert_float32(dialect: str, case: Case, theirs: Reference, *, exact: bool = True) -> None:
    """The float32 law.

    Args:
        exact: the framework's own float64 run is what both are compared with; else isostep's is,
            as the framework's holds numbers in float32.
    """
    ours = run(dialect, case, "float32")
    assert ours.ran == {f"native {layout} float32" for layout in case.kernels}
    held = dialects.get(dialect).spelling(case.framework_class).in_float32
    exact = exact and not case.quirk and not held and "float64" in case.dtypes
    oracle = None if exact else run(dialect, case, "float64")
    distances: dict[str, list[tuple[Array, Array]]] = {}
    for step, name, slot, array, expected in _pairs(case, "float32", ours, theirs):
        if oracle is None:
            true = theirs[case.name, "float64", str(step), name, slot].reshape(array.shape)
        else:
            true = oracle.states[step][name][slot]
        assert np.array_equal(np.isfinite(array), np.isfinite(expected)), (step, name, slot)
        seen = np.isfinite(true)
        if array.size > 1 and seen.any():
            ulp = np.spacing(np.abs(true[seen]).max().astype(np.float32)).astype(np.float64)
            apart = tuple(
                np.abs(a.astype(np.float64) - true)[seen] / ulp for a in (array, expected)
            )
            distances.setdefault(slot, []).append(apart)
    for slot, apart in distances.items():
        our, their = (
            np.sqrt(np.mean(np.square(np.concatenate(side)))) for side in zip(*apart, strict=True)
        )
        assert our <= their + 1, f"{slot}: {our:.2f} ulps, and the framework {their:.2f}"


def assert_defaults(dialect: str, theirs: Reference, but: Collection[tuple[str, str]] = ()) -> None:
    """The dialect's defaults are those of the framework's signatures.

    Args:
        but: (class, argument) where the dialect differs by intent.
    """
    found = json.loads(str(theirs["probe", "defaults"]))
    for spelling in dialects.get(dialect).spellings.values():
        for argument, names in spelling.arguments.items():
            if (spelling.class_name, argument) in but:
                continue
            values = [spelling.defaults[name] for name in names]
            listed = [REQUIRED if value is dialects.REQUIRED else value for value in values]
            default = found[spelling.class_name][argument]
            assert default == (listed if len(listed) > 1 else listed[0]), (spelling, argument)


def _walk(state: State) -> Iterator[tuple[str, str, Array]]:
    """(parameter, slot, array) of a state."""
    for name, arrays in state.items():
        for slot, array in arrays.items():
            yield name, slot, array


def _copy(state: State) -> State:
    return {name: {k: np.array(a) for k, a in arrays.items()} for name, arrays in state.items()}


def _pairs(
    case: Case, dtype: str, ours: Run, theirs: Reference
) -> Iterator[tuple[int, str, str, Array, Array]]:
    """(step, parameter, slot, our array, theirs), where the framework has the slot already."""
    for step, state in ours.states.items():
        for name, slot, array in _walk(state):
            expected = theirs.get((case.name, dtype, str(step), name, slot))
            if expected is None:
                absent = case.without_gradient.get(name, lambda step: False)
                assert all(absent(s) for s in range(1, step + 1)), f"no {slot} of {name}"
                continue
            assert expected.dtype == dtype, (step, name, slot)
            # PyTorch keeps the reduced axis of a factor.
            assert expected.squeeze().shape == array.squeeze().shape, (step, name, slot)
            yield step, name, slot, array, expected.reshape(array.shape)


def _error(array: Array, expected: Array, magnitude: Array) -> float:
    """The largest relative error; infinite where one side is not finite and the other differs."""
    same = (array == expected) | (np.isnan(array) & np.isnan(expected))
    with np.errstate(all="ignore"):
        relative = np.where(same, 0.0, np.abs(array - expected) / magnitude)
    return float(np.nan_to_num(relative, nan=np.inf).max(initial=0.0))


def _assert_same_slots(
    case: Case, dtype: str, ours: Run, theirs: Reference, extra: frozenset[str]
) -> None:
    for step, state in ours.states.items():
        for name, arrays in state.items():
            kept = {key[4] for key in theirs if key[:4] == (case.name, dtype, str(step), name)}
            assert kept <= arrays.keys() | extra, (step, name)
