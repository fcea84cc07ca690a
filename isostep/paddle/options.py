"""What isostep's Paddle optimizers take beyond Paddle's own arguments."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from isostep import dialects
from isostep.errors import HyperparameterError
from isostep.recipe import EMA, NONFINITE, as_ema

_CHOICES: dict[str, tuple[Any, ...]] = {
    "nonfinite": NONFINITE,
    "clip_per_group": (False, True),
    "report": (False, True),
    "engine": ("native", "array"),
}


@dataclass(frozen=True)
class Extras:
    """The options that Paddle does not have.

    Args:
        ema: moving average of the parameters, or its momentum.
        nonfinite: what an infinite or NaN gradient does.
        clip_per_group: a global norm is that of each parameter group, as in Paddle, and not of all.
        report: measure norms in each step.
        engine: `"native"` steps tensors on the CPU by generated kernels; `"array"` steps by
            Paddle's own operations, as is done in programs and on other devices.
    """

    ema: EMA | None = None
    nonfinite: Literal["propagate", "skip", "raise"] = "propagate"
    clip_per_group: bool = False
    report: bool = False
    engine: Literal["native", "array"] = "native"

    def used(self) -> list[str]:
        """The options that are not left at their defaults."""
        return [f.name for f in fields(self) if getattr(self, f.name) != f.default]


def checked(extras: dict[str, Any]) -> Extras:
    """The extras, or an error that says what is wrong."""
    ema = as_ema(extras.get("ema"), dialects.get("paddle").averaging.start)
    made = Extras(**{**extras, "ema": ema})
    for name, allowed in _CHOICES.items():
        value = getattr(made, name)
        if value not in allowed:
            raise HyperparameterError(
                f"{name}={value!r} is not allowed: use {' or '.join(map(repr, allowed))}"
            )
    return made
