r"""RMSprop: the gradient over a moving root mean square of itself.

$$ v_t = \alpha v_{t-1} + (1-\alpha) g_t^2, \quad
   \bar g_t = \alpha \bar g_{t-1} + (1-\alpha) g_t, \quad
   d_t = \frac{g_t}{\sqrt{v_t \, [- \bar g_t^2] + \epsilon_{root}} + \epsilon} $$
$$ b_t = \mu b_{t-1} + d_t, \qquad \theta_t = \theta_{t-1} - \gamma b_t $$

The bracket is the centered form. Source: Hinton, "Neural networks for machine learning", lecture 6
(2012); centered: Graves, arXiv:1308.0850, equations 38-45; Nesterov and bias correction: optax.

Slots, of the parameter's shape: `square_avg` (`initial_scale`), `grad_avg` (zeros, if centered),
`momentum_buffer` (zeros, with momentum).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from isostep.rules.average import toward
from isostep.rules.base import WEIGHT_DECAY, Hyperparameter, Rule, Slot, Slots, is_on, unit_interval
from isostep.rules.epsilon import EPS_IN_ROOT, eps_coefficients, eps_guards
from isostep.rules.momentum import BUFFER, apply_momentum, momentum_coefficients


def switches(h: SimpleNamespace) -> dict[str, Any]:
    return {
        "momentum": is_on(h.momentum),
        "nesterov": h.nesterov,
        "centered": h.centered,
        "bias_correction": h.bias_correction,
    }


def coefficients(xp: Any, t: Any, h: SimpleNamespace) -> dict[str, Any]:
    c = {"alpha": h.alpha, "one_minus_alpha": 1.0 - h.alpha, **eps_coefficients(h)}
    if h.bias_correction:
        # At alpha = 1 the average never moves, and there is nothing to correct.
        c["correction"] = 1.0 / xp.where(h.alpha < 1.0, 1.0 - h.alpha**t, 1.0)
    return c | (momentum_coefficients(h) if is_on(h.momentum) else {"direction_step": -h.lr})


def update(
    xp: Any, g: Any, p: Any, slots: Slots, c: SimpleNamespace, o: SimpleNamespace
) -> tuple[Any, dict[str, Any]]:
    square_avg = c.alpha * slots["square_avg"] + xp.inner(c.one_minus_alpha * g, g)
    new = {"square_avg": square_avg}
    variance = square_avg * c.correction if o.bias_correction else square_avg
    if o.centered:
        grad_avg = toward(xp, slots["grad_avg"], g, c.one_minus_alpha)
        new["grad_avg"] = grad_avg
        mean = grad_avg * c.correction if o.bias_correction else grad_avg
        variance = variance - xp.inner(mean, mean)
    direction = g / (xp.sqrt(variance + c.eps_root) + c.eps)
    if not o.momentum:
        return c.direction_step * direction, new
    step, new["momentum_buffer"] = apply_momentum(
        direction, slots["momentum_buffer"], c, o.nesterov
    )
    return step, new


RMSPROP = Rule(
    name="RMSprop",
    hyperparameters=(
        Hyperparameter("lr", 1e-2, "learning rate"),
        unit_interval("alpha", 0.99, "decay rate of the averages", closed=True),
        Hyperparameter("eps", 1e-8, "added to the denominator"),
        WEIGHT_DECAY,
        Hyperparameter("momentum", 0.0, "momentum of the buffer"),
        Hyperparameter("centered", False, "subtract the square of the mean gradient"),
        Hyperparameter("nesterov", False, "look ahead along the buffer"),
        Hyperparameter("bias_correction", False, "undo the pull of the averages to zero"),
        Hyperparameter("initial_scale", 0.0, "first value of the average square"),
        EPS_IN_ROOT,
        BUFFER,
    ),
    slots=(
        Slot("square_avg", "moving average of squared gradients", initial="initial_scale"),
        Slot("grad_avg", "moving average of gradients", when=lambda o: o.centered),
        Slot(
            "momentum_buffer",
            "decaying sum of directions",
            when=lambda o: o.momentum,
            meant_by=("buffer",),
        ),
    ),
    coefficients=coefficients,
    update=update,
    switches=switches,
    guards=eps_guards,
)
