"""A Keras optimizer on torch with all that its user holds: variables and saved states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import torch

from isostep.keras_api import Absent

SHAPES = ((4, 4), (5,), (3, 5), (), (2, 3, 4), (4, 4), (1,), (2, 2, 2, 3))
DTYPES = ("float32", "float64", "bfloat16", "float16")
EPS = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}


class Nothing(Exception):
    """An edit finds nothing that it could be done to."""


class World:
    """One of two worlds that get the same edits.

    Args:
        make: makes an optimizer.
        seed: of the values.
        dtype: of the variables.
        count: how many they are.
    """

    def __init__(self, make: Callable[[], Any], seed: int, dtype: str, count: int) -> None:
        self.make, self._seed, self._drawn = make, seed, 0
        self.variables = [
            keras.Variable(self.values(SHAPES[(seed + k) % len(SHAPES)]), dtype=dtype, name=f"v{k}")
            for k in range(count)
        ]
        self.saved: list[Any] = []
        self.odd = False
        """Whether something was edited to what kernels need not know."""
        self.begin()

    def begin(self) -> None:
        """Make the optimizer anew."""
        self.optimizer = self.make()
        self.optimizer.build(self.variables)

    def values(self, shape: Any) -> Any:
        """New values: those of the other world are the same."""
        self._drawn += 1
        chance = np.random.default_rng([self._seed, self._drawn])
        return np.asarray(chance.normal(size=shape).clip(-3, 3), np.float64)

    def go_on_like(self, other: World) -> None:
        """Draw the values that another world draws; an edit may have found nothing in one."""
        self._drawn = other._drawn = max(self._drawn, other._drawn)

    def variable(self, i: int) -> Any:
        return self.variables[i % len(self.variables)]

    def kept(self) -> list[Any]:
        """The variables of the optimizer, in Keras' order; what isostep does not keep is None."""
        return [None if isinstance(v, Absent) else v for v in self.optimizer._variables]

    def slots(self) -> list[Any]:
        """What is kept beside the count and the learning rate."""
        return self.kept()[2:]

    def stepped(self) -> list[Any]:
        """The variables of which numbers are made."""
        return [*self.variables, *(v for v in self.slots() if v is not None)]

    def slot(self, i: int) -> Any:
        """One of the slots that a step reads."""
        slots = self.slots()
        found = slots[i % len(slots)] if slots else None
        if found is None:
            raise Nothing("it is not kept")
        return found

    def target(self, i: int, k: int) -> Any:
        """A variable, or a slot."""
        return self.slot(i) if k % 2 else self.variable(i)

    def tensors(self) -> Iterator[tuple[str, Any]]:
        """All tensors that a step may write, by name; None where one is not kept."""
        for k, variable in enumerate(self.variables):
            yield f"variable {k}", variable._value
        for k, variable in enumerate(self.kept()):
            yield (
                f"{k}: {getattr(variable, 'name', '')}",
                None if variable is None else variable._value,
            )

    def snapshot(self) -> list[Any]:
        return [None if t is None else (t, t.detach().clone()) for _, t in self.tensors()]

    def changed(self, before: list[Any]) -> str:
        """The first tensor that is not what it was, or nothing."""
        for (name, now), then in zip(self.tensors(), before, strict=True):
            if then is None:
                continue
            tensor, values = then
            if now is not tensor or not same_bits(now, values):
                return name
        return ""

    def back(self, before: list[Any]) -> None:
        for then in before:
            if then is not None:
                then[0].detach().copy_(then[1])


def same_bits(a: Any, b: Any) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a == b) | (a.isnan() & b.isnan())).all())
