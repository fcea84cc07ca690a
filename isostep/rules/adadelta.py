r"""Adadelta: the gradient rescaled by the ratio of two moving root mean squares.

$$ E_t = \rho E_{t-1} + (1-\rho) g_t^2, \quad
   \Delta_t = \frac{\sqrt{D_{t-1} + \epsilon}}{\sqrt{E_t + \epsilon}} \, g_t, \quad
   D_t = \rho D_{t-1} + (1-\rho) \Delta_t^2, \quad
   \theta_t = \theta_{t-1} - \gamma \Delta_t $$

Source: Zeiler, arXiv:1212.5701, algorithm 1; the learning rate is the frameworks' addition and
never enters $D$.

Slots, of the parameter's shape, zeros: `square_avg` ($E$), `acc_delta` ($D$).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from isostep.rules.base import WEIGHT_DECAY, Guard, Hyperparameter, Rule, Slot, Slots, unit_interval


def coefficients(xp: Any, t: Any, h: SimpleNamespace) -> dict[str, Any]:
    return {"lr": h.lr, "rho": h.rho, "one_minus_rho": 1.0 - h.rho, "eps": h.eps}


def update(
    xp: Any, g: Any, p: Any, slots: Slots, c: SimpleNamespace, o: SimpleNamespace
) -> tuple[Any, dict[str, Any]]:
    square_avg = c.rho * slots["square_avg"] + c.one_minus_rho * g * g
    delta = xp.sqrt(slots["acc_delta"] + c.eps) / xp.sqrt(square_avg + c.eps) * g
    acc_delta = c.rho * slots["acc_delta"] + c.one_minus_rho * delta * delta
    return -c.lr * delta, {"square_avg": square_avg, "acc_delta": acc_delta}


ADADELTA = Rule(
    name="Adadelta",
    hyperparameters=(
        Hyperparameter("lr", 1.0, "learning rate"),
        unit_interval("rho", 0.9, "decay rate of both averages", closed=True),
        Hyperparameter("eps", 1e-6, "added inside both roots"),
        WEIGHT_DECAY,
    ),
    slots=(
        Slot("square_avg", "moving average of squared gradients"),
        Slot("acc_delta", "moving average of squared updates, before the learning rate"),
    ),
    coefficients=coefficients,
    update=update,
    guards=lambda o: ((Guard("eps"),),),
)
