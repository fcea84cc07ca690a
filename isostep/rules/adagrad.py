r"""Adagrad: each element's step shrinks with the sum of its squared gradients.

$$ s_t = s_{t-1} + g_t^2, \qquad
   \theta_t = \theta_{t-1} - \frac{\gamma}{1 + (t-1)\eta} \,
   \frac{g_t}{\sqrt{s_t + \epsilon_{root}} + \epsilon} $$

with $\eta$ = `lr_decay`. Source: Duchi, Hazan and Singer, "Adaptive subgradient methods" (JMLR 12,
2011); `lr_decay` is PyTorch's; frameworks differ in which of the two epsilons they use.

Slots: `sum` (the parameter's shape, `initial_accumulator_value`).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from isostep.rules.base import WEIGHT_DECAY, Hyperparameter, Rule, Slot, Slots
from isostep.rules.epsilon import EPS_IN_ROOT, eps_coefficients, eps_guards


def coefficients(xp: Any, t: Any, h: SimpleNamespace) -> dict[str, Any]:
    return {"step_size": h.lr / (1.0 + (t - 1) * h.lr_decay), **eps_coefficients(h)}


def update(
    xp: Any, g: Any, p: Any, slots: Slots, c: SimpleNamespace, o: SimpleNamespace
) -> tuple[Any, dict[str, Any]]:
    total = slots["sum"] + xp.inner(g, g)
    direction = g / (xp.sqrt(total + c.eps_root) + c.eps)
    if o.zero_where_empty:  # 0/0 with both epsilons zero
        direction = xp.where(total > 0, direction, 0.0)
    return -c.step_size * direction, {"sum": total}


ADAGRAD = Rule(
    name="Adagrad",
    hyperparameters=(
        Hyperparameter("lr", 1e-2, "learning rate"),
        Hyperparameter("lr_decay", 0.0, "inverse-time decay of the learning rate, per step"),
        Hyperparameter("initial_accumulator_value", 0.0, "first value of the sum of squares"),
        Hyperparameter("eps", 1e-10, "added to the denominator"),
        WEIGHT_DECAY,
        EPS_IN_ROOT,
        Hyperparameter("zero_where_empty", False, "no update where the sum of squares is zero"),
    ),
    slots=(Slot("sum", "sum of squared gradients", initial="initial_accumulator_value"),),
    coefficients=coefficients,
    update=update,
    switches=lambda h: {"zero_where_empty": h.zero_where_empty},
    guards=eps_guards,
)
