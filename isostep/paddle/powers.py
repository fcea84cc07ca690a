"""The powers of the betas, by which Paddle's Adam counts steps.

isostep counts in integers, and writes Paddle's tensors after each step, so that whoever looks at
them finds what Paddle would have there. Who edits them sets the count.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isostep.compile import machine_code
from isostep.engines import threads
from isostep.paddle.accumulators import called, master
from isostep.paddle.tensors import addresses, dtype_name

POWERS = {"beta1_pow_acc": "beta1", "beta2_pow_acc": "beta2"}

_SOURCE = """
from isostep.compile.intrinsics import float32_at, float64_at, int64_at
"""
_KERNELS = """

def read_{0}(low, high, context):
    tables = int64_at(context)
    places, values = int64_at(tables[0]), {0}_at(tables[1])
    for k in range(low, high):
        values[k] = {0}_at(places[k])[0]


def write_{0}(low, high, context):
    tables = int64_at(context)
    places, values = int64_at(tables[0]), {0}_at(tables[1])
    for k in range(low, high):
        {0}_at(places[k])[0] = values[k]
"""


def powers(optimizer: Any, param: Any) -> dict[str, Any]:
    """The tensors that hold the powers for a parameter, by their names; empty if there are none."""
    copy = master(optimizer, param)
    holder = param if copy is None else copy
    kept = {name: optimizer._accumulators.get(called(optimizer, name), {}) for name in POWERS}
    return {name: held[holder.name] for name, held in kept.items() if holder.name in held}


class Powers:
    """All powers of one optimizer, on the CPU, read and written in one call for each dtype.

    Args:
        optimizer: whose they are.
        params: its parameters, in the order of the counts that go with them.
        values: the hyperparameters of each parameter.
    """

    def __init__(
        self, optimizer: Any, params: Sequence[Any], values: Sequence[Mapping[str, Any]]
    ) -> None:
        found: dict[str, list[tuple[int, str, Any]]] = {}
        for k, param in enumerate(params):
            for name, tensor in powers(optimizer, param).items():
                found.setdefault(dtype_name(tensor.dtype), []).append((k, name, tensor))
        self._parts = [_Part(dtype, held) for dtype, held in found.items()]
        self.set_betas(values)

    def set_betas(self, values: Sequence[Mapping[str, Any]]) -> None:
        """Go by other hyperparameters from now on."""
        for part in self._parts:
            part.betas = np.array([values[k][POWERS[n]] for k, n in part.owners], dtype=np.float64)

    def write(self, steps: NDArray[np.int64]) -> None:
        """Set all powers to what they are after so many steps of each parameter."""
        for part in self._parts:
            part.values[:] = part.betas ** (steps[part.places] + 1)
            part.run("write")
            part.known = part.values.copy()

    def follow(self, steps: NDArray[np.int64]) -> None:
        """Bring the counts in line with powers that someone else has written."""
        for part in self._parts:
            part.run("read")
            for n in np.flatnonzero(part.values != part.known):
                k, _ = part.owners[n]
                same = part.places == k
                steps[k] = agreed(
                    dict(zip(part.betas[same], part.values[same], strict=True)), int(steps[k])
                )
            part.known = part.values.copy()


class _Part:
    """The powers of one dtype."""

    def __init__(self, dtype: str, held: Sequence[tuple[int, str, Any]]) -> None:
        self._dtype = dtype
        self.owners = [(k, name) for k, name, _ in held]
        self.places = np.array([k for k, _ in self.owners], dtype=np.intp)
        self.betas = np.zeros(len(held))
        self.values = np.zeros(len(held), dtype=dtype)
        self.known = np.full(len(held), np.nan, dtype=dtype)  # nothing yet
        self._tensors = [tensor for _, _, tensor in held]  # their memory must stay
        self._where = addresses(self._tensors)
        tables = [self._where.ctypes.data, self.values.ctypes.data]
        self._context = np.array(tables, dtype=np.int64)
        self._bounds = np.array([[0, len(held)]], dtype=np.int64)

    def run(self, what: str) -> None:
        kernel = _kernels().addresses[f"{what}_{self._dtype}"]
        threads.run(kernel, self._bounds, int(self._context.ctypes.data))


@functools.cache
def _kernels() -> Any:
    kinds = [_KERNELS.format(dtype) for dtype in ("float32", "float64")]
    return machine_code.build(_SOURCE + "".join(kinds))


def power_after(beta: float, steps: int) -> float:
    """What Paddle holds after some steps: the power for the next one."""
    return beta ** (steps + 1)


def agreed(read: Mapping[float, Any], steps: int) -> int:
    """The steps that powers stand for; a count that they agree with stays.

    Args:
        read: the powers, NumPy scalars of their dtype, by beta.
        steps: the count that is believed.
    """
    known = [b for b in read if 0.0 < b < 1.0]
    if not known or all(
        math.isclose(read[b], power_after(b, steps), rel_tol=1e-6, abs_tol=1e-37) for b in known
    ):
        return steps
    slowest = max(known)  # its power keeps digits for longer
    return steps_of(read[slowest], slowest)


@functools.lru_cache(maxsize=64)
def steps_of(power: Any, beta: float) -> int:
    """How many steps a power of beta stands for, in Paddle's counting.

    Paddle multiplies once a step in the dtype of the power, and rounds each time; isostep rounds
    once. Both are known exactly, so both are read exactly.

    Args:
        power: the accumulator, a NumPy scalar of its dtype.
        beta: the hyperparameter, in (0, 1).
    """
    least = np.nextafter(np.zeros_like(power), np.ones_like(power))
    guess = math.log(max(float(power), float(least))) / math.log(beta)
    products = np.full(int(1.02 * guess) + 64, beta, dtype=power.dtype)
    same = np.flatnonzero(np.multiply.accumulate(products) == power)
    return int(same[0]) if len(same) else max(0, round(guess) - 1)
