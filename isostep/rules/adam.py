r"""Adam and AdamW: bias-corrected first moment over the root of the second.

$$ m_t = m_{t-1} + (1-\beta_1)(g_t - m_{t-1}), \qquad v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2 $$
$$ \theta_t = \theta_{t-1} - \gamma \,
   \frac{m_t / (1-\beta_1^t)}{\sqrt{v_t / (1-\beta_2^t) + \epsilon_{root}} + \epsilon} $$

Both corrections are folded into the coefficients, so an element costs one root and one division.
`eps_hat=True` is the paper's second arrangement (Keras): epsilon is added to the uncorrected root.
AMSGrad divides by the largest second moment so far: of the raw ones, or of the corrected ones
(optax). `nesterov` is NAdam as optax has it. AdamW is Adam with decoupled weight decay.

Sources: Kingma and Ba, arXiv:1412.6980, algorithm 1 and the end of section 2 (epsilon hat);
Reddi et al., "On the convergence of Adam and beyond" (ICLR 2018), algorithm 2; Dozat,
"Incorporating Nesterov momentum into Adam" (2016); Loshchilov and Hutter, arXiv:1711.05101.

Slots, of the parameter's shape, zeros: `exp_avg` ($m$), `exp_avg_sq` ($v$), `max_exp_avg_sq`
(AMSGrad only).
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from isostep.rules.average import toward
from isostep.rules.base import (
    LR,
    WEIGHT_DECAY,
    Hyperparameter,
    Rule,
    Slot,
    Slots,
    unit_interval,
)
from isostep.rules.epsilon import eps_guards, scaled


def switches(h: SimpleNamespace) -> dict[str, Any]:
    corrected = h.amsgrad and h.max_of_corrected
    return {"amsgrad": h.amsgrad, "max_of_corrected": corrected, "nesterov": h.nesterov}


def coefficients(xp: Any, t: Any, h: SimpleNamespace) -> dict[str, Any]:
    bias1 = _one_minus_power(xp, h.beta1, t)
    bias2 = _one_minus_power(xp, h.beta2, t)
    # sqrt(v/bias2 + root) + eps = (sqrt(v + root*bias2) + eps*sqrt(bias2)) / sqrt(bias2)
    inside = 1.0 if h.amsgrad and h.max_of_corrected else bias2
    outside = 1.0 if h.eps_hat else xp.sqrt(inside)
    c = {
        "one_minus_beta1": 1.0 - h.beta1,
        "beta2": h.beta2,
        "one_minus_beta2": 1.0 - h.beta2,
        "step_size": h.lr * xp.sqrt(inside) / bias1,
        "eps": h.eps * outside,
        "eps_root": scaled(h.eps_root, inside),
        "correction2": 1.0 / bias2,
    }
    if h.nesterov:
        c["step_size"] = h.lr * xp.sqrt(inside) * h.beta1 / _one_minus_power(xp, h.beta1, t + 1)
        c["gradient_step"] = h.lr * xp.sqrt(inside) * (1.0 - h.beta1) / bias1
    return c


def _one_minus_power(xp: Any, beta: Any, t: Any) -> Any:
    """1 - beta^t without losing digits when beta^t is near 1; 1 at beta = 0."""
    safe = xp.where(beta > 0, beta, 0.5)
    return xp.where(beta > 0, -xp.expm1(t * xp.log(safe)), 1.0)


def update(
    xp: Any, g: Any, p: Any, slots: Slots, c: SimpleNamespace, o: SimpleNamespace
) -> tuple[Any, dict[str, Any]]:
    m = toward(xp, slots["exp_avg"], g, c.one_minus_beta1)
    v = c.beta2 * slots["exp_avg_sq"] + xp.inner(c.one_minus_beta2 * g, g)
    new = {"exp_avg": m, "exp_avg_sq": v}
    if o.amsgrad:
        candidate = v * c.correction2 if o.max_of_corrected else v
        v = xp.maximum(slots["max_exp_avg_sq"], candidate)
        new["max_exp_avg_sq"] = v
    top = c.step_size * m
    if o.nesterov:
        top = top + c.gradient_step * g
    return -top / (xp.sqrt(v + c.eps_root) + c.eps), new


ADAM = Rule(
    name="Adam",
    hyperparameters=(
        LR,
        unit_interval("beta1", 0.9, "decay rate of the first moment"),
        unit_interval("beta2", 0.999, "decay rate of the second moment"),
        Hyperparameter("eps", 1e-8, "added to the root of the second moment"),
        WEIGHT_DECAY,
        Hyperparameter("amsgrad", False, "divide by the largest second moment so far"),
        Hyperparameter("eps_root", 0.0, "added to the corrected second moment, inside the root"),
        Hyperparameter("nesterov", False, "mix the gradient into the corrected first moment"),
        Hyperparameter("eps_hat", False, "add epsilon to the uncorrected root"),
        Hyperparameter("max_of_corrected", False, "AMSGrad over corrected second moments"),
    ),
    slots=(
        Slot("exp_avg", "moving average of gradients"),
        Slot("exp_avg_sq", "moving average of squared gradients"),
        Slot(
            "max_exp_avg_sq",
            "largest second moment so far",
            when=lambda o: o.amsgrad,
            meant_by=("max_of_corrected",),
        ),
    ),
    coefficients=coefficients,
    update=update,
    switches=switches,
    guards=eps_guards,
)

ADAMW = replace(
    ADAM,
    name="AdamW",
    decay="decoupled",
    hyperparameters=tuple(
        replace(h, default=1e-2) if h is WEIGHT_DECAY else h for h in ADAM.hyperparameters
    ),
)
