"""One step, composed: everything that happens to a gradient between loss and parameter.

The order is fixed: divide by the loss scale, look for non-finite values, clip, maximize, decay, the
rule, moving average, cast and store. `step` writes it once, in the terms of a rule; what it is
traced into is one fused kernel for exactly the options asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from isostep.errors import HyperparameterError
from isostep.rules.average import toward
from isostep.rules.base import Hyperparameter, Rule

NONFINITE = ("propagate", "skip", "raise")
NONFINITE_SUM = "nonfinite"
"""The name of a sum over all tensors: of non-finite gradient elements."""
Bound = float | Callable[..., Any] | None
BOUND = Hyperparameter("bound", 1.0, "bound of the gradients", high=math.inf, open_low=True)
MOMENTUM = Hyperparameter("momentum", 0.99, "decay rate of an average", high=1.0)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What bounds the gradients, exactly one of three, by name.

    Args:
        value: every element is brought into [-value, value]. As the two others, a number in
            (0, inf] or a callable that gives it, of the step count or of nothing.
        norm: each tensor's gradient is scaled down to at most this Euclidean norm.
        global_norm: all gradients are scaled by one factor, to at most this norm of them all.

    Raises:
        HyperparameterError: none or several are given, or one is not a positive number.
        TypeError: a bound is given without its name.
    """

    if not TYPE_CHECKING:  # what is checked there has the dataclass's own signature

        def __new__(cls, *bounds: Any, **named: Any) -> Any:
            if bounds:
                given = ", ".join(map(repr, bounds))
                raise TypeError(
                    f"Clip({given}) does not say what is bounded: write Clip(value=...) for each "
                    f"element, Clip(norm=...) for each tensor's norm, or Clip(global_norm=...) for "
                    f"the norm of all gradients"
                )
            return super().__new__(cls)

    value: Bound = None
    norm: Bound = None
    global_norm: Bound = None

    def __post_init__(self) -> None:
        given = {k: v for k, v in vars(self).items() if v is not None}
        if len(given) != 1:
            raise HyperparameterError(
                f"Clip takes exactly one of value, norm and global_norm, not {given or 'none'}"
            )
        for name, threshold in given.items():
            object.__setattr__(self, name, BOUND.check(threshold, f"Clip({name})"))

    @property
    def kind(self) -> Literal["value", "norm", "global_norm"]:
        """Which of the three is given."""
        if self.value is not None:
            return "value"
        return "norm" if self.norm is not None else "global_norm"

    @property
    def threshold(self) -> Any:
        """The bound itself: a number, or a callable of the step count."""
        return getattr(self, self.kind)


@dataclass(frozen=True)
class EMA:
    """A moving average of the parameters, kept in the same pass.

    Args:
        momentum: decay rate of the average, in [0, 1]: a number, or a callable that gives it.
        overwrite_every: every so many steps the parameter is set to its average; None never does.
        start: `"initial"`: the average starts as the parameter before the first step (tf_keras);
            `"first_update"`: as the parameter after it (Keras 3, torch's `AveragedModel`).

    Raises:
        HyperparameterError: a value is out of range.
    """

    momentum: float | Callable[..., Any] = 0.99
    _: KW_ONLY
    overwrite_every: int | None = None
    start: Literal["initial", "first_update"] = "initial"

    def __post_init__(self) -> None:
        object.__setattr__(self, "momentum", MOMENTUM.check(self.momentum, "EMA(momentum)"))
        every = self.overwrite_every
        if every is not None and (isinstance(every, bool) or int(every) != every or every < 1):
            raise HyperparameterError(f"EMA(overwrite_every={every!r}) must be an int >= 1 or None")
        Hyperparameter("start", "initial", "", choices=("initial", "first_update")).check(
            self.start, "EMA(start)"
        )


def as_ema(given: EMA | float | None, start: Literal["initial", "first_update"]) -> EMA | None:
    """An average as users may give it: as it is, or its momentum, or none.

    Args:
        given: what the user gave.
        start: where an average starts that is given by its momentum.

    Raises:
        HyperparameterError: the momentum is out of range.
    """
    return given if given is None or isinstance(given, EMA) else EMA(momentum=given, start=start)


@dataclass(frozen=True)
class Recipe:
    """The static side of one step: a rule and the options that decide which code runs.

    Two tensors with equal recipes share a kernel; numbers are coefficients and never enter here.

    Args:
        rule: the rule.
        switches: the rule's switches, as sorted (name, value) pairs.
        unscale: divide gradients by a loss scale.
        nonfinite: `"propagate"`, or `"skip"`/`"raise"`: stop before any write if a gradient has a
            non-finite value.
        clip: None or the kind of clipping.
        clip_scope: the global norm is that of all tensors with this word.
        inf_norm_is_nan: an infinite norm makes every element NaN (Keras) rather than zero.
        maximize: ascend.
        decay: None, `"coupled"` or `"decoupled"`.
        decay_mixed: some tensors decay and others do not, by a coefficient of zero.
        decay_first: the rule sees the decayed parameter (Keras); it matters to Adafactor only.
        idle: there is no gradient; only the average moves (Keras 3 averages every variable).
        master: `param` is a float32 copy, stored besides as `model` in the model's dtype.
        delta: store what is to be added to the parameter as `update`, and leave the parameter.
        complex: the parameter is complex; squares and norms are of absolute values.
        average: keep a moving average.
        overwrite: the average may overwrite the parameter.
        report: measure norms of gradient, update and parameter and count non-finite values.
    """

    rule: Rule
    switches: tuple[tuple[str, Any], ...] = ()
    unscale: bool = False
    nonfinite: Literal["propagate", "skip", "raise"] = "propagate"
    clip: Literal["value", "norm", "global_norm"] | None = None
    clip_scope: str = ""
    inf_norm_is_nan: bool = False
    maximize: bool = False
    decay: Literal["coupled", "decoupled"] | None = None
    decay_mixed: bool = False
    decay_first: bool = False
    idle: bool = False
    master: bool = False
    delta: bool = False
    complex: bool = False
    average: bool = False
    overwrite: bool = False
    report: bool = False

    @property
    def o(self) -> SimpleNamespace:
        """The switches as attributes, as a rule reads them."""
        return SimpleNamespace(**dict(self.switches))


@dataclass
class StepResult:
    """What one step computes of a tensor, as values or as symbols.

    Args:
        stores: new arrays by name: `param`, slots, `average`.
        statistics: sums by name, for the report.
        blocked: the number of non-finite gradient elements of the whole step, if it stops it.
    """

    stores: dict[str, Any]
    statistics: dict[str, Any]
    blocked: Any | None


def step(xp: Any, recipe: Recipe, x: dict[str, Any], c: Any) -> StepResult:
    """One step of one tensor.

    Args:
        xp: the namespace.
        recipe: what is to be done.
        x: `grad`, `param` (the float32 master where there is one), `average`, and the rule's slots.
        c: coefficients: those of the rule and those of `coefficients` below.
    """
    result = StepResult({}, {}, None)
    new = x["param"] if recipe.idle else _stepped(xp, recipe, x, c, result)
    if recipe.average:
        average = toward(xp, x["average"], new, c.average_weight)
        result.stores["average"] = average
        if recipe.overwrite:
            new = xp.where(c.overwrite_now > 0, average, new)
            if recipe.delta:
                result.stores["update"] = new - x["param"]
    if (not recipe.idle or recipe.overwrite) and not recipe.delta:
        result.stores["param"] = new
    return result


def _stepped(xp: Any, recipe: Recipe, x: dict[str, Any], c: Any, result: StepResult) -> Any:
    """The parameter after the rule; slots and sums go into `result`."""
    p, g, sums = x["param"], x["grad"], result.statistics
    if recipe.unscale:
        g = g * c.inverse_loss_scale
    if recipe.report:
        sums["grad_sq"] = xp.sum(xp.inner(g, g), per="tensor")
    if recipe.report or recipe.nonfinite != "propagate":
        bad = 1.0 - xp.isfinite(g)
        sums["nonfinite"] = xp.sum(bad, per="tensor")
        if recipe.nonfinite != "propagate":
            result.blocked = xp.sum(bad, per="step", name=NONFINITE_SUM)
    g = _clip(xp, recipe, g, c)
    if result.blocked is not None:  # after the clip, whose norm is measured in the same pass
        g = xp.after(g, result.blocked)
    if recipe.maximize:
        g = -g

    decayed = p
    if recipe.decay == "coupled":
        g = _decaying(xp, recipe, c, g + c.decay * p, g)
    elif recipe.decay == "decoupled":
        decayed = _decaying(xp, recipe, c, p - c.decay * p, p)
    seen = decayed if recipe.decay_first else p
    update, slots = recipe.rule.update(xp, g, seen, x, c, recipe.o)
    result.stores.update(slots)
    if recipe.delta:
        delta = update
        if recipe.decay == "decoupled":
            delta = _decaying(xp, recipe, c, update - c.decay * p, update)
        result.stores["update"] = delta
    new = decayed + update
    if recipe.report:
        change = new - p
        sums["update_sq"] = xp.sum(xp.inner(change, change), per="tensor")
        sums["param_sq"] = xp.sum(xp.inner(p, p), per="tensor")
    return new


def _decaying(xp: Any, recipe: Recipe, c: Any, with_decay: Any, without: Any) -> Any:
    """What a tensor has where it decays, else what it has without. A coefficient of zero is not
    enough: zero times an infinite parameter is NaN, and what does not decay may be infinite."""
    if not recipe.decay_mixed:
        return with_decay
    return xp.where(xp.abs(c.decay) > 0, with_decay, without)


def _clip(xp: Any, recipe: Recipe, g: Any, c: Any) -> Any:
    if recipe.clip is None:
        return g
    if recipe.clip == "value":
        return xp.minimum(xp.maximum(g, -c.clip_threshold), c.clip_threshold)
    if recipe.clip == "norm":
        square = xp.sum(xp.inner(g, g), per="tensor")
    else:
        square = xp.sum(xp.inner(g, g), per="step", name=norm_sum(recipe.clip_scope))
    norm = xp.sqrt(square)
    scale = xp.minimum(1.0, c.clip_threshold / (norm + c.clip_eps))
    if recipe.inf_norm_is_nan:
        scale = scale + (norm - norm)
    return g * scale


def norm_sum(scope: str) -> str:
    """The name of a sum over all tensors: of squares, for the global norm of a `clip_scope`."""
    return f"norm {scope}"


def coefficients(
    xp: Any,
    t: Any,
    iteration: Any,
    h: SimpleNamespace,
    *,
    rule: Rule,
    clip: Clip | None = None,
    clip_eps: float = 0.0,
    ema: EMA | None = None,
    decay: Literal["coupled", "decoupled"] | None = None,
    decay_times_lr: bool = True,
    loss_scale: Any = 1.0,
    read: Callable[[Any, Hyperparameter], Any] = lambda value, declared: value,
) -> dict[str, Any]:
    """All numbers a step reads, of the rule and of the recipe, by name.

    Args:
        xp: a namespace with `where`, `sqrt`, `log`, `expm1`, `minimum`.
        t: step count of the parameters, 1 at their first step.
        iteration: step count of the optimizer, 1 at its first step.
        h: the hyperparameters of the rule.
        clip_eps: what a dialect adds to the norm.
        decay_times_lr: decoupled decay is multiplied by the learning rate.
        read: gives the present value of what may be a callable, and checks it if it can.
    """
    c = rule.coefficients(xp, t, h)
    c["inverse_loss_scale"] = 1.0 / loss_scale
    times_lr = decay == "decoupled" and decay_times_lr
    c["decay"] = h.weight_decay * h.lr if times_lr else h.weight_decay
    if clip is not None:
        c |= {"clip_threshold": read(clip.threshold, BOUND), "clip_eps": clip_eps}
    if ema is not None:
        momentum = read(ema.momentum, MOMENTUM)
        if ema.start == "first_update":
            momentum = xp.where(iteration == 1, 0.0, momentum)
        every = ema.overwrite_every or 1
        c |= {
            "average_weight": 1.0 - momentum,
            "overwrite_now": xp.where(iteration % every == 0, 1.0, 0.0),
        }
    return c
