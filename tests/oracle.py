"""A second opinion in float64: each optimizer as its paper or framework writes it, one array at a
time.

Nothing here comes from `isostep.rules`, `isostep.recipe` or the dialects, so an error there is not
repeated here. Powers of the decay rates are taken in extended precision, since 1 - beta^t is where
float64 itself loses digits. Slots carry isostep's names and their own shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
State = dict[str, Array]

KERAS = ("keras", "tf_keras")
# Keras 3, torch's AveragedModel and optax' incremental_update average whatever had no gradient too.
AVERAGES_ALL = ("keras", "torch", "optax")


def one_minus_power(beta: float, t: int) -> float:
    return float(1 - np.longdouble(beta) ** t)


def rms(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


# -- the rules: (p, g, t, state, h) -> new p -------------------------------------------------------


def follow_momentum(p: Array, g: Array, gain: float, s: State, h: SimpleNamespace) -> Array:
    """The rate outside the buffer (torch), inside (Paddle's RMSProp), inside, negated (Keras)."""
    b = s["momentum_buffer"]
    if h.buffer == "direction":
        b = s["momentum_buffer"] = h.momentum * b + gain * g
        return p - h.lr * (g + h.momentum * b if h.nesterov else b)
    if h.buffer == "step":
        b = s["momentum_buffer"] = h.momentum * b + gain * h.lr * g
        return p - (h.lr * g + h.momentum * b if h.nesterov else b)
    b = s["momentum_buffer"] = h.momentum * b - gain * h.lr * g
    return p + (h.momentum * b - h.lr * g if h.nesterov else b)


def sgd(p: Array, g: Array, t: int, s: State, h: SimpleNamespace) -> Array:
    if not h.momentum:
        return p - h.lr * g
    s.setdefault("momentum_buffer", np.zeros_like(p))
    return follow_momentum(p, g, 1.0 if t == 1 else 1.0 - h.dampening, s, h)


def adagrad(p: Array, g: Array, t: int, s: State, h: SimpleNamespace) -> Array:
    total = s.get("sum", np.full_like(p, h.initial_accumulator_value)) + g**2
    s["sum"] = total
    rate = h.lr / (1 + (t - 1) * h.lr_decay)
    with np.errstate(invalid="ignore"):
        change = rate * g / (np.sqrt(total + h.eps) if h.eps_in_root else np.sqrt(total) + h.eps)
    return p - (np.where(total > 0, change, 0.0) if h.zero_where_empty else change)


def rmsprop(p: Array, g: Array, t: int, s: State, h: SimpleNamespace) -> Array:
    v = s["square_avg"] = (
        h.alpha * s.get("square_avg", np.full_like(p, h.initial_scale)) + (1 - h.alpha) * g**2
    )
    correction = one_minus_power(h.alpha, t) if h.bias_correction else 1.0
    variance = v / correction
    if h.centered:
        mean = h.alpha * s.get("grad_avg", np.zeros_like(p)) + (1 - h.alpha) * g
        s["grad_avg"] = mean
        variance = variance - (mean / correction) ** 2
    d = g / (np.sqrt(variance + h.eps) if h.eps_in_root else np.sqrt(variance) + h.eps)
    if not h.momentum:
        return p - h.lr * d
    s.setdefault("momentum_buffer", np.zeros_like(p))
    return follow_momentum(p, d, 1.0, s, h)


def adadelta(p: Array, g: Array, t: int, s: State, h: SimpleNamespace) -> Array:
    before = s.get("acc_delta", np.zeros_like(p))
    e = s["square_avg"] = h.rho * s.get("square_avg", np.zeros_like(p)) + (1 - h.rho) * g**2
    delta = np.sqrt(before + h.eps) / np.sqrt(e + h.eps) * g
    s["acc_delta"] = h.rho * before + (1 - h.rho) * delta**2
    return p - h.lr * delta


def adam(p: Array, g: Array, t: int, s: State, h: SimpleNamespace) -> Array:
    m = s["exp_avg"] = h.beta1 * s.get("exp_avg", np.zeros_like(p)) + (1 - h.beta1) * g
    v = s["exp_avg_sq"] = h.beta2 * s.get("exp_avg_sq", np.zeros_like(p)) + (1 - h.beta2) * g**2
    bias1, bias2 = one_minus_power(h.beta1, t), one_minus_power(h.beta2, t)
    v_hat = v / bias2
    if h.amsgrad:
        largest = s.get("max_exp_avg_sq", np.zeros_like(p))
        largest = s["max_exp_avg_sq"] = np.maximum(largest, v_hat if h.max_of_corrected else v)
        v, v_hat = largest, largest if h.max_of_corrected else largest / bias2
    m_hat = m / bias1
    if h.nesterov:
        m_hat = h.beta1 * m / one_minus_power(h.beta1, t + 1) + (1 - h.beta1) * g / bias1
    if h.eps_hat:  # the end of section 2 of the paper, as Keras has it
        return p - h.lr * np.sqrt(bias2) * m_hat / (np.sqrt(v) + h.eps)
    return p - h.lr * m_hat / (np.sqrt(v_hat + h.eps_root) + h.eps)


def factored_axes(shape: tuple[int, ...], h: SimpleNamespace) -> tuple[int, int] | None:
    """The row axis and the column axis: the last two, or optax' two longest."""
    if not h.factored or len(shape) < 2:
        return None
    row, column = len(shape) - 2, len(shape) - 1
    if h.largest_axes:
        row, column = (int(axis) for axis in np.argsort(shape, kind="stable")[-2:])
    short = min(shape[row], shape[column]) < h.min_dim_to_factor
    return None if short else (row, column)


def adafactor(p: Array, g: Array, t: int, s: State, h: SimpleNamespace) -> Array:
    new = float(np.longdouble(t) ** -h.decay_rate)  # the weight 1 - beta_t of the newest
    square = g**2 if h.clamp_eps else g**2 + h.eps1
    axes = factored_axes(p.shape, h)
    if axes is None:
        v = s["exp_avg_sq"] = (1 - new) * s.get("exp_avg_sq", 0.0) + new * square
    else:
        row, column = axes
        r = (1 - new) * s.get("row", 0.0) + new * square.mean(axis=column)
        c = (1 - new) * s.get("column", 0.0) + new * square.mean(axis=row)
        s["row"], s["column"] = r, c
        r, c = np.expand_dims(r, column), np.expand_dims(c, row)
        mean = r.mean(axis=row, keepdims=True)
        v = r * c / (np.maximum(mean, h.eps1) if h.clamp_eps else mean)
    u = g / np.sqrt(np.maximum(v, h.eps1**2) if h.clamp_eps else v)
    if h.clip_threshold is not None:
        u = u / max(1.0, rms(u) / h.clip_threshold)
    rate = min(h.lr, 1 / np.sqrt(t)) if h.relative_step else h.lr
    change = rate * (max(h.eps2, rms(p)) if h.parameter_scale else 1.0) * u
    if h.momentum:
        change = h.momentum * s.get("exp_avg", 0.0) + (1 - h.momentum) * change
        s["exp_avg"] = change
    return p - change


RULES: dict[str, Callable[..., Array]] = {
    "SGD": sgd,
    "Adagrad": adagrad,
    "RMSprop": rmsprop,
    "Adadelta": adadelta,
    "Adam": adam,
    "AdamW": adam,
    "Adafactor": adafactor,
}


# -- clipping, as each framework writes it ---------------------------------------------------------


def norm_of(*arrays: Array) -> float:
    return float(np.sqrt(sum(float(np.sum(a**2)) for a in arrays)))


def clip_factor(dialect: str, kind: str, norm: float, bound: float) -> float:
    """What a gradient is multiplied by, given a norm."""
    if dialect == "torch":  # nn.utils.clip_grad_norm_
        return min(1.0, bound / (norm + 1e-6))
    if dialect in KERAS:  # ops.clip_by_norm; clip_by_global_norm, where inf and NaN poison all
        if kind == "norm":
            return bound / max(norm, bound)
        return bound * min(1 / norm, 1 / bound) if np.isfinite(norm) else np.nan
    if dialect == "paddle":  # ClipGradByNorm, ClipGradByGlobalNorm
        if kind == "norm":
            return bound / norm if norm > bound else 1.0
        return bound / max(norm, bound)
    return 1.0 if norm < bound else bound / norm  # optax.clip_by_global_norm


def clipped(dialect: str, kind: str, bound: float, grads: State) -> State:
    if kind == "value":
        return {name: np.clip(g, -bound, bound) for name, g in grads.items()}
    if kind == "norm":
        return {
            name: g * clip_factor(dialect, kind, norm_of(g), bound) for name, g in grads.items()
        }
    factor = clip_factor(dialect, kind, norm_of(*grads.values()), bound)
    return {name: g * factor for name, g in grads.items()}


# -- one step --------------------------------------------------------------------------------------


@dataclass
class Oracle:
    """Parameters and state of one optimizer.

    Args:
        rule, h: the rule and all its hyperparameters by isostep's names; values may be schedules.
        params: by name; kept here as float64 copies.
        dialect: whose clip formula, decay, averaging and step count.
        clip: None or (kind, bound).
        ema: None or (momentum, overwrite every so many steps or None, start).
        decay: where weight decay acts; None for the framework's way.
    """

    rule: str
    h: Mapping[str, Any]
    params: State
    dialect: str = "torch"
    clip: tuple[str, float] | None = None
    ema: tuple[float, int | None, str] | None = None
    maximize: bool = False
    decay: str | None = None
    iteration: int = 0
    steps: dict[str, int] = field(default_factory=dict)
    slots: dict[str, State] = field(default_factory=dict)
    averages: State = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.params = {n: np.array(p, dtype=np.float64) for n, p in self.params.items()}
        self.steps = dict.fromkeys(self.params, 0)
        self.slots = {name: {} for name in self.params}
        if self.ema:
            self.averages = {name: p.copy() for name, p in self.params.items()}
        if self.decay is None:
            decoupled = self.dialect in KERAS or self.rule in ("AdamW", "Adafactor")
            self.decay = "decoupled" if decoupled else "coupled"

    def step(self, grads: Mapping[str, Any], loss_scale: float = 1.0) -> None:
        """One step; a gradient of None leaves its parameter as it is."""
        h = SimpleNamespace(
            **{k: v(self.iteration) if callable(v) else v for k, v in self.h.items()}
        )
        given = {
            name: np.asarray(g).astype(np.float64) / loss_scale
            for name, g in grads.items()
            if g is not None
        }
        if self.clip:
            given = clipped(self.dialect, *self.clip, given)
        self.iteration += 1
        for name, g in given.items():
            self.steps[name] += 1
            new = self._one(name, -g if self.maximize else g, h)
            self.params[name] = self._averaged(name, new)
        if self.dialect in AVERAGES_ALL:
            for name in self.params.keys() - given.keys():
                self.params[name] = self._averaged(name, self.params[name])

    def _one(self, name: str, g: Array, h: SimpleNamespace) -> Array:
        p = self.params[name]
        per_parameter = self.dialect in ("torch", "paddle")
        t = self.steps[name] if per_parameter else self.iteration
        lost: Array | float = 0.0
        if self.decay == "coupled":
            g = g + h.weight_decay * p
        elif self.rule == "Adafactor" and self.dialect == "optax":
            lost = h.weight_decay * p  # weight_decay_rate, not multiplied by the learning rate
        else:
            lost = h.lr * h.weight_decay * p
        seen = p - lost if self.dialect in KERAS else p  # Keras decays the variable itself, first
        new = RULES[self.rule](seen, g, t, self.slots[name], h)
        return new if self.dialect in KERAS else new - lost

    def _averaged(self, name: str, new: Array) -> Array:
        if not self.ema:
            return new
        momentum, every, start = self.ema
        if start == "first_update" and self.iteration == 1:
            momentum = 0.0
        average = momentum * self.averages[name] + (1 - momentum) * new
        self.averages[name] = average
        return average.copy() if every and self.iteration % every == 0 else new
