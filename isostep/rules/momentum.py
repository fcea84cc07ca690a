"""The momentum buffer, shared by every rule that has one.

Frameworks agree on `buffer = momentum * buffer + gain * x` and differ in what the buffer holds:
the direction itself, or the direction times the learning rate, with either sign. That decides how
a change of the learning rate acts on what was accumulated before.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from isostep.rules.base import Hyperparameter

BUFFER = Hyperparameter(
    "buffer",
    "direction",
    "what the momentum buffer sums: the direction, lr times it (step), or -lr times it (update)",
    choices=("direction", "step", "update"),
)


def momentum_coefficients(h: SimpleNamespace, gain: Any = 1.0) -> dict[str, Any]:
    """Coefficients of `apply_momentum`; `gain` is one minus the dampening."""
    into, out = {"direction": (1.0, -h.lr), "step": (h.lr, -1.0), "update": (-h.lr, 1.0)}[h.buffer]
    return {
        "momentum": h.momentum,
        "gain": into * gain,
        "buffer_step": out * h.momentum if h.nesterov else out,
        "direction_step": -h.lr,
    }


def apply_momentum(x: Any, buffer: Any, c: SimpleNamespace, nesterov: bool) -> tuple[Any, Any]:
    """The update along direction `x`, and the new buffer."""
    buffer = c.momentum * buffer + c.gain * x
    update = c.buffer_step * buffer
    return (update + c.direction_step * x if nesterov else update), buffer
