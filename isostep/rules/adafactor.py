r"""Adafactor: second moments kept as one factor per row and one per column.

With $G_t = g_t^2 + \epsilon_1$, $\beta_t = 1 - t^{-\kappa}$ and means over the other axis,

$$ r_t = \beta_t r_{t-1} + (1-\beta_t) \operatorname{mean}_{col} G_t, \quad
   c_t = \beta_t c_{t-1} + (1-\beta_t) \operatorname{mean}_{row} G_t, \quad
   v_t = \frac{r_t \, c_t}{\operatorname{mean} r_t} $$
$$ u_t = \frac{g_t}{\sqrt{v_t}}, \qquad
   \hat u_t = \frac{u_t}{\max(1, \operatorname{RMS}(u_t) / d)} $$
$$ \theta_t = \theta_{t-1}
   - \rho_t \max(\epsilon_2, \operatorname{RMS}(\theta_{t-1})) \, \hat u_t $$

where $\rho_t = \min(\gamma, 1/\sqrt t)$ if `relative_step`, else $\gamma$. Tensors that are not
factored keep $v_t = \beta_t v_{t-1} + (1-\beta_t) G_t$. With `clamp_eps` (PyTorch) $\epsilon_1$
bounds $\operatorname{mean} r_t$ and $\sqrt{v_t}$ from below instead of being added to $g_t^2$. With
`nan_rms_is_small` (PyTorch) an RMS that is NaN leaves $d$ and $\epsilon_2$ as they are. With
`decay_offset` (optax) $\beta_t$ counts steps from there, and there is none before.

Source: Shazeer and Stern, arXiv:1804.04235, algorithms 4-6; two axes are factored, the last two,
or the two largest if both have `min_dim_to_factor` (`largest_axes`, optax). `momentum` averages
the finished update (optax).

Slots: `row` (the parameter's shape without the column axis) and `column` (without the row axis),
or `exp_avg_sq` (the parameter's shape) where not factored; `exp_avg` with momentum. All zeros.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from isostep.rules.average import toward
from isostep.rules.base import (
    WEIGHT_DECAY,
    Guard,
    Guards,
    Hyperparameter,
    Rule,
    Slot,
    Slots,
    is_on,
    unit_interval,
)


def switches(h: SimpleNamespace) -> dict[str, Any]:
    return {
        "clamp_eps": h.clamp_eps,
        "nan_rms_is_small": h.nan_rms_is_small,
        "update_clip": h.clip_threshold is not None,
        "parameter_scale": h.parameter_scale,
        "momentum": is_on(h.momentum),
    }


def factored_axes(shape: tuple[int, ...], h: SimpleNamespace) -> tuple[int, int] | None:
    if len(shape) < 2 or not h.factored:
        return None
    axes = (len(shape) - 2, len(shape) - 1)
    if h.largest_axes:
        # A stable sort by length: of equal lengths the later axis counts as the larger.
        by_length = sorted(range(len(shape)), key=lambda axis: shape[axis])
        axes = (by_length[-2], by_length[-1])
    return axes if shape[axes[0]] >= h.min_dim_to_factor <= shape[axes[1]] else None


def coefficients(xp: Any, t: Any, h: SimpleNamespace) -> dict[str, Any]:
    c = {
        "one_minus_beta2": _of_age(xp, t - h.decay_offset, h.decay_rate),
        "step_size": xp.minimum(h.lr, 1.0 / xp.sqrt(t)) if h.relative_step else h.lr,
        "eps1": h.eps1,
        "scale_floor": h.eps2,
    }
    if h.clamp_eps:
        c["second_moment_floor"] = h.eps1**2
    if h.clip_threshold is not None:
        c["inverse_threshold"] = 1.0 / h.clip_threshold
    if is_on(h.momentum):
        c["one_minus_momentum"] = 1.0 - h.momentum
    return c


def _of_age(xp: Any, age: Any, decay_rate: Any) -> Any:
    """`age` ** -`decay_rate`; NaN before the first step that counts."""
    return xp.where(age > 0, xp.maximum(age, 2.0**-126) ** -decay_rate, math.nan)


def update(
    xp: Any, g: Any, p: Any, slots: Slots, c: SimpleNamespace, o: SimpleNamespace
) -> tuple[Any, dict[str, Any]]:
    square = xp.inner(g, g) if o.clamp_eps else xp.inner(g, g) + c.eps1
    if o.factored:
        row = toward(xp, slots["row"], xp.mean(square, per="row"), c.one_minus_beta2)
        column = toward(xp, slots["column"], xp.mean(square, per="column"), c.one_minus_beta2)
        new = {"row": row, "column": column}
        mean = xp.mean(row, per="matrix")
        v = row / (xp.maximum(mean, c.eps1) if o.clamp_eps else mean) * column
    else:
        v = toward(xp, slots["exp_avg_sq"], square, c.one_minus_beta2)
        new = {"exp_avg_sq": v}
    u = g / xp.sqrt(xp.maximum(v, c.second_moment_floor) if o.clamp_eps else v)

    scale = c.step_size
    if o.parameter_scale:
        rms = xp.sqrt(xp.mean(xp.inner(p, p), per="tensor"))
        scale = scale * _at_least(xp, c.scale_floor, rms, o)
    if o.update_clip:
        rms = xp.sqrt(xp.mean(xp.inner(u, u), per="tensor"))
        scale = scale / _at_least(xp, 1.0, rms * c.inverse_threshold, o)
    step = scale * u
    if o.momentum:
        step = toward(xp, slots["exp_avg"], step, c.one_minus_momentum)
        new["exp_avg"] = step
    return -step, new


def _at_least(xp: Any, bound: Any, rms: Any, o: SimpleNamespace) -> Any:
    """The RMS, or the bound where that is larger."""
    return xp.where(rms > bound, rms, bound) if o.nan_rms_is_small else xp.maximum(bound, rms)


def guards(o: SimpleNamespace) -> Guards:
    if o.clamp_eps:
        # A row over a mean of eps1 passes its error on eps1-fold, beside the floor eps1^2.
        found: Guards = ((Guard("second_moment_floor", degree=1.5),),)
    else:
        found = ((Guard("eps1"),),)
    return (*found, (Guard("scale_floor", power=0.5),)) if o.parameter_scale else found


ADAFACTOR = Rule(
    name="Adafactor",
    hyperparameters=(
        Hyperparameter("lr", 1e-2, "learning rate, the cap of the relative step"),
        Hyperparameter("decay_rate", 0.8, "exponent kappa of the second-moment decay 1 - t^-kappa"),
        Hyperparameter("decay_offset", 0.0, "steps of an earlier training, which do not count"),
        Hyperparameter("eps1", 1e-30, "regulariser of the squared gradient"),
        Hyperparameter("eps2", 1e-3, "smallest root mean square of a parameter"),
        Hyperparameter(
            "clip_threshold",
            1.0,
            "largest RMS of an update",
            high=math.inf,
            open_low=True,
            optional=True,
        ),
        WEIGHT_DECAY,
        Hyperparameter("relative_step", True, "cap the learning rate at 1/sqrt(t)"),
        Hyperparameter("parameter_scale", True, "multiply by the RMS of the parameter"),
        unit_interval("momentum", 0.0, "decay rate of an average of the updates"),
        Hyperparameter("factored", True, "keep factors instead of a full second moment"),
        Hyperparameter("min_dim_to_factor", 1, "shortest axis that is factored"),
        Hyperparameter("largest_axes", False, "factor the two longest axes, not the last two"),
        Hyperparameter("clamp_eps", False, "eps1 bounds from below instead of being added"),
        Hyperparameter("nan_rms_is_small", False, "an RMS that is NaN bounds nothing"),
    ),
    slots=(
        Slot("row", "moving mean of squares per row", per="row", when=lambda o: o.factored),
        Slot("column", "moving mean of squares per column", "column", when=lambda o: o.factored),
        Slot("exp_avg_sq", "moving average of squares", when=lambda o: not o.factored),
        Slot("exp_avg", "moving average of updates", when=lambda o: o.momentum),
    ),
    coefficients=coefficients,
    update=update,
    switches=switches,
    factored_axes=factored_axes,
    guards=guards,
    decay="decoupled",
)
