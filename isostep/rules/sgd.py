r"""Stochastic gradient descent with momentum.

$$ b_t = \mu b_{t-1} + (1 - \tau_t) g_t, \qquad
   \theta_t = \theta_{t-1} - \gamma \, (b_t \text{ or } g_t + \mu b_t) $$

The second form is Nesterov's. The first gradient enters the buffer undampened ($\tau_1 = 0$), as
in PyTorch. Source: Sutskever et al., "On the importance of initialization and momentum in deep
learning" (ICML 2013), in PyTorch's arrangement; where the learning rate sits inside the buffer
(Keras), `buffer="update"`.

Slots: `momentum_buffer` (the parameter's shape, zeros), with momentum only.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from isostep.rules.base import LR, WEIGHT_DECAY, Hyperparameter, Rule, Slot, Slots, is_on
from isostep.rules.momentum import BUFFER, apply_momentum, momentum_coefficients


def switches(h: SimpleNamespace) -> dict[str, Any]:
    return {"momentum": is_on(h.momentum), "nesterov": h.nesterov}


def coefficients(xp: Any, t: Any, h: SimpleNamespace) -> dict[str, Any]:
    if not is_on(h.momentum):
        return {"direction_step": -h.lr}
    return momentum_coefficients(h, gain=xp.where(t == 1, 1.0, 1.0 - h.dampening))


def update(
    xp: Any, g: Any, p: Any, slots: Slots, c: SimpleNamespace, o: SimpleNamespace
) -> tuple[Any, dict[str, Any]]:
    if not o.momentum:
        return c.direction_step * g, {}
    step, buffer = apply_momentum(g, slots["momentum_buffer"], c, o.nesterov)
    return step, {"momentum_buffer": buffer}


SGD = Rule(
    name="SGD",
    hyperparameters=(
        LR,
        Hyperparameter("momentum", 0.0, "momentum of the buffer"),
        Hyperparameter("dampening", 0.0, "what is kept back of each gradient but the first", None),
        Hyperparameter("nesterov", False, "look ahead along the buffer"),
        WEIGHT_DECAY,
        BUFFER,
    ),
    slots=(
        Slot(
            "momentum_buffer",
            "decaying sum of gradients",
            when=lambda o: o.momentum,
            meant_by=("buffer",),
        ),
    ),
    coefficients=coefficients,
    update=update,
    switches=switches,
)
