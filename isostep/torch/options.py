"""What isostep's torch optimizers take beyond torch's own arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from isostep import dialects
from isostep.dialects.base import Dialect
from isostep.errors import HyperparameterError, ParameterError
from isostep.groups import Group, as_groups, assign
from isostep.recipe import EMA, Clip

LrRatio = Mapping[str, float] | Callable[[str], float]


@dataclass(frozen=True)
class Extras:
    """The options that torch.optim does not have.

    Args:
        clip: bound of the gradients, in the step.
        ema: moving average of the parameters, or its momentum.
        dialect: whose formulas; names and defaults stay torch's.
        decay: `"coupled"` or `"decoupled"` weight decay, for any rule; None is torch's way.
        master_weights: float32 masters of float16 and bfloat16 parameters.
        state_dtype: dtype of the slots, for all or by torch's slot name; None is the parameter's.
        nonfinite: what an infinite or NaN gradient does.
        lazy: sparse gradients touch only the rows that they have.
        report: measure norms in each step; see `optimizer.report`.
    """

    clip: Clip | None = None
    ema: EMA | None = None
    dialect: str = "torch"
    decay: Literal["coupled", "decoupled"] | None = None
    master_weights: bool = False
    state_dtype: torch.dtype | str | None = None
    nonfinite: Literal["propagate", "skip", "raise"] = "propagate"
    lazy: bool = False
    report: bool = False

    @property
    def state_dtype_name(self) -> str:
        """The dtype of the slots by name; `"param"` for the parameter's own."""
        return "param" if self.state_dtype is None else str(self.state_dtype).split(".")[-1]

    @property
    def style(self) -> Dialect:
        """The dialect itself."""
        return dialects.get(self.dialect)


def checked(extras: dict[str, Any]) -> Extras:
    """The extras, or an error that says what is wrong."""
    clip, ema = extras.get("clip"), extras.get("ema")
    if clip is not None and not isinstance(clip, Clip):
        raise HyperparameterError(
            f"clip={clip!r} is not a Clip: write Clip(global_norm=...), Clip(norm=...) or "
            f"Clip(value=...)"
        )
    if ema is not None and not isinstance(ema, EMA):
        start = dialects.get(extras.get("dialect", "torch")).averaging.start
        extras = extras | {"ema": EMA(momentum=ema, start=start)}
    return Extras(**extras)


def split(
    params: Iterable[Any],
    groups: Sequence[Group | Mapping[str, Any]],
    exclude_from_weight_decay: Sequence[str],
    lr_ratio: LrRatio | None,
) -> Any:
    """Parameters sorted into torch's param groups by name pattern.

    Raises:
        ParameterError: a pattern is given and the parameters have no names.
        UnknownNameError: a pattern matches nothing.
    """
    patterns = as_groups(groups)
    excluded = [Group(list(exclude_from_weight_decay))] if exclude_from_weight_decay else []
    if not patterns and not excluded and lr_ratio is None:
        return params
    named = list(params)
    if not all(isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str) for p in named):
        raise ParameterError(
            "groups, exclude_from_weight_decay and lr_ratio go by parameter name: pass "
            "model.named_parameters() instead of model.parameters()"
        )
    names = [name for name, _ in named]
    chosen = assign(names, patterns)
    bare = assign(names, excluded)
    ratios = _ratios(names, lr_ratio)
    sorted_in: dict[tuple[int, bool, float], list[Any]] = {}
    for pair, group, out, ratio in zip(named, chosen, bare, ratios, strict=True):
        sorted_in.setdefault((group, out == 0, ratio), []).append(pair)
    result: list[dict[str, Any]] = []
    for (group, out, ratio), pairs in sorted_in.items():
        settings = dict(patterns[group].hyperparameters) if group >= 0 else {}
        if out:
            settings["weight_decay"] = 0.0
        if lr_ratio is not None:
            settings["lr_ratio"] = ratio
        result.append({"params": pairs, **settings})
    return result


def _ratios(names: list[str], lr_ratio: LrRatio | None) -> list[float]:
    if lr_ratio is None:
        return [1.0] * len(names)
    if callable(lr_ratio):
        found = [float(lr_ratio(name)) for name in names]
    else:
        patterns = [Group(pattern, ratio=value) for pattern, value in lr_ratio.items()]
        found = [
            1.0 if k < 0 else float(patterns[k].hyperparameters["ratio"])
            for k in assign(names, patterns)
        ]
    for name, ratio in zip(names, found, strict=True):
        if not ratio >= 0:
            raise HyperparameterError(f"lr_ratio of {name!r} is {ratio!r}: it must be at least 0")
    return found
