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
from isostep.paddle.accumulators import called, check, master
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

    Attributes:
        tensors: the powers themselves. Whoever calls `follow` or `write` must have seen that they
            lie where they lay.

    Raises:
        StateError: a power is not a number of the dtype that its parameter is stepped in.
    """

    def __init__(
        self, optimizer: Any, params: Sequence[Any], values: Sequence[Mapping[str, Any]]
    ) -> None:
        found: dict[str, list[tuple[int, str, Any]]] = {}
        self.tensors: list[Any] = []
        for k, param in enumerate(params):
            dtype = "float64" if dtype_name(param.dtype) == "float64" else "float32"
            for name, tensor in powers(optimizer, param).items():
                shape = () if tensor._is_initialized() and tensor.ndim == 0 else (1,)
                check(name, param.name, tensor, shape, dtype)
                found.setdefault(dtype, []).append((k, name, tensor))
                self.tensors.append(tensor)
        self._parts = [_Part(dtype, held) for dtype, held in found.items()]
        self.set_betas(values)

    def set_betas(self, values: Sequence[Mapping[str, Any]]) -> None:
        """Go by other hyperparameters from now on."""
        for part in self._parts:
            part.betas = np.array([values[k][POWERS[n]] for k, n in part.owners], dtype=np.float64)
            part.known = np.full(len(part.owners), np.nan)  # they may be powers of others

    def write(self, steps: NDArray[np.int64]) -> None:
        """Set all powers to what they are after so many steps of each parameter."""
        for part in self._parts:
            part.values[:] = part.betas ** (steps[part.places] + 1)
            part.run("write")
            part.known = part.values.copy()

    def follow(self, steps: NDArray[np.int64]) -> int | None:
        """Bring the counts in line with powers that someone else has written.

        Args:
            steps: the counts, which are written.

        Returns:
            The place of a parameter whose powers are those of no count; None if there is none.
        """
        for part in self._parts:
            part.run("read")
            for n in np.flatnonzero(part.values != part.known):
                k, _ = part.owners[n]
                same = part.places == k
                read = list(zip(part.betas[same].tolist(), part.values[same], strict=True))
                count = agreed(read, int(steps[k]))
                if count is None:
                    return k
                steps[k] = count
            part.known = part.values.copy()
        return None


class _Part:
    """The powers of one dtype."""

    def __init__(self, dtype: str, held: Sequence[tuple[int, str, Any]]) -> None:
        self._dtype = dtype
        self.owners = [(k, name) for k, name, _ in held]
        self.places = np.array([k for k, _ in self.owners], dtype=np.intp)
        self.betas = np.zeros(len(held))
        self.values = np.zeros(len(held), dtype=dtype)
        self.known = np.zeros(len(held), dtype=dtype)
        self._where = addresses([tensor for _, _, tensor in held])
        tables = [self._where.ctypes.data, self.values.ctypes.data]
        self._context = np.array(tables, dtype=np.int64)
        self._bounds = np.array([[0, len(held)]], dtype=np.int64)

    def run(self, what: str) -> None:
        kernel = _kernels().addresses[f"{what}_{self._dtype}"]
        threads.serially(kernel, self._bounds, int(self._context.ctypes.data))


@functools.cache
def _kernels() -> Any:
    kinds = [_KERNELS.format(dtype) for dtype in ("float32", "float64")]
    return machine_code.build(_SOURCE + "".join(kinds))


def power_after(beta: float, steps: int) -> float:
    """What Paddle holds after some steps: the power for the next one."""
    return beta ** (steps + 1)


Read = Sequence[tuple[float, Any]]
"""Betas, each with its power, a NumPy scalar."""


def agreed(read: Read, steps: int) -> int | None:
    """The steps that powers stand for; a count that they agree with stays.

    Args:
        read: betas and powers.
        steps: the count that is believed.

    Returns:
        The count; None if the powers are those of no count, as after a change of the betas, of
        which Paddle keeps the product.
    """
    if _all_after(read, steps):
        return steps
    count = nearest(read)
    return count if _all_after(read, count) else None


def nearest(read: Read) -> int:
    """The count that powers come nearest to; see `agreed`."""
    known = [(beta, power) for beta, power in read if 0.0 < beta < 1.0]
    if not known:
        return 0
    beta, power = max(known, key=lambda pair: pair[0])  # its power keeps digits for longer
    return steps_of(power, beta)


def _all_after(read: Read, steps: int) -> bool:
    return all(_is_after(power, beta, steps) for beta, power in read)


def _is_after(power: Any, beta: float, steps: int) -> bool:
    """Whether a power is what Paddle or isostep may hold after some steps.

    Paddle rounds the beta and each product; and what differs by less than the rounding of 1 - power
    corrects no bias.
    """
    due, rounding = power_after(beta, steps), np.finfo(power.dtype)
    bound = rounding.eps * ((steps + 2) * due + (1.0 - due)) + float(rounding.tiny)
    return bool(abs(float(power) - due) <= bound)


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
