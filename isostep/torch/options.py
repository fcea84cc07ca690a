"""What isostep's torch optimizers take beyond torch's own arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

import torch

from isostep import dialects
from isostep.dialects.base import Dialect
from isostep.errors import HyperparameterError, ParameterError, UnknownNameError, nearest
from isostep.groups import Group, assign
from isostep.rates import LR_RATIO
from isostep.recipe import EMA, NONFINITE, Clip, as_ema
from isostep.torch.tensors import TORCH_DTYPES

_CHOICES: dict[str, tuple[Any, ...]] = {
    "decay": (None, "coupled", "decoupled"),
    "nonfinite": NONFINITE,
    "master_weights": (False, True),
    "lazy": (False, True),
    "report": (False, True),
}
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
        state_dtype: dtype of the slots, one for all or by torch's slot name; None is that of what
            is stepped: the parameter's, or the master's.
        nonfinite: what an infinite or NaN gradient does.
        lazy: sparse gradients touch only the rows that they have.
        report: measure norms in each step; see `optimizer.report`.
    """

    clip: Clip | None = None
    ema: EMA | None = None
    dialect: str = "torch"
    decay: Literal["coupled", "decoupled"] | None = None
    master_weights: bool = False
    state_dtype: torch.dtype | str | Mapping[str, torch.dtype | str] | None = None
    nonfinite: Literal["propagate", "skip", "raise"] = "propagate"
    lazy: bool = False
    report: bool = False

    def slot_dtypes(self, slots: Mapping[str, str]) -> dict[str, str]:
        """The dtype of each slot of the rule, for a stepper.

        Args:
            slots: torch's name of each slot.

        Raises:
            UnknownNameError: `state_dtype` names a slot that the rule does not have.
            HyperparameterError: it is no dtype of a slot.
        """
        asked = self.state_dtype
        by_name = asked if isinstance(asked, Mapping) else dict.fromkeys(slots.values(), asked)
        for name, dtype in by_name.items():
            if name not in slots.values():
                known = list(slots.values())
                raise UnknownNameError(
                    f"state_dtype: there is no slot {name!r}{nearest(name, known)} "
                    f"(slots: {', '.join(known)})"
                )
            if dtype is not None and _short(dtype) not in TORCH_DTYPES:
                raise HyperparameterError(
                    f"state_dtype={dtype!r} is not supported: use one of {', '.join(TORCH_DTYPES)}"
                )
        chosen = {slot: by_name.get(name) for slot, name in slots.items()}
        fallback = {} if self.master_weights else dict.fromkeys(slots, "param")
        return fallback | {s: _short(dtype) for s, dtype in chosen.items() if dtype is not None}

    def used(self) -> list[str]:
        """The options that are not left at their defaults."""
        return [f.name for f in fields(self) if getattr(self, f.name) != f.default]

    def spanning(self, shards: bool) -> list[str]:
        """The options in use that look at more than one parameter.

        Args:
            shards: those that look at more than one element, too.
        """
        used = ["clip"] if self.clip and self.clip.kind == "global_norm" else []
        if shards and self.clip and self.clip.kind == "norm":
            used = ["clip"]
        return [*used, *(name for name in ("nonfinite", "report") if name in self.used())]

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
    start = dialects.get(extras.get("dialect", "torch")).averaging.start
    made = Extras(**{**extras, "ema": as_ema(ema, start)})
    for name, allowed in _CHOICES.items():
        value = getattr(made, name)
        if value not in allowed:
            raise HyperparameterError(
                f"{name}={value!r} is not allowed: use {' or '.join(map(repr, allowed))}"
            )
    if made.lazy and made.clip is not None and made.clip.kind == "norm":
        raise HyperparameterError(
            "lazy=True does not go with Clip(norm=...), the norm of each tensor: rows are stepped "
            "on their own; use Clip(global_norm=...) or Clip(value=...)"
        )
    return made


def _short(dtype: Any) -> str:
    """`torch.float32` as `"float32"`."""
    return str(dtype).split(".")[-1]


@dataclass(frozen=True)
class Patterns:
    """What the user asks for by parameter name, of the first groups and of those added later.

    Args:
        groups: hyperparameters.
        excluded: the pattern of parameters that do not decay; at most one.
        lr_ratio: factor on the learning rate.
    """

    groups: Sequence[Group] = ()
    excluded: Sequence[Group] = ()
    lr_ratio: LrRatio | None = None

    def __bool__(self) -> bool:
        return bool(self.groups or self.excluded or self.lr_ratio is not None)

    def split(self, params: Iterable[Any], known: Collection[str]) -> Any:
        """Parameters sorted into torch's param groups.

        Args:
            params: as the user passed them.
            known: the arguments of torch's class, which groups may set.

        Raises:
            ParameterError: a pattern is given and the parameters have no names.
            UnknownNameError: a pattern matches nothing, or a group sets what the class does not
                have.
        """
        for key in [key for group in self.groups for key in group.hyperparameters]:
            if key not in known and key != LR_RATIO.name:
                raise UnknownNameError(f"groups: there is no argument {key!r}{nearest(key, known)}")
        if not self:
            return params
        named = list(params)
        if not all(isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str) for p in named):
            raise ParameterError(
                "groups, exclude_from_weight_decay and lr_ratio go by parameter name: pass "
                "model.named_parameters() instead of model.parameters()"
            )
        return self._sorted(named, {}, strict=True)

    def applied(self, group: dict[str, Any]) -> list[dict[str, Any]]:
        """A group that is added later, as torch takes it; split where its names need it.

        Hyperparameters of its own come before those of `groups`; an exclusion comes before both.
        """
        params = group.get("params")
        if not self or params is None or isinstance(params, torch.Tensor | set):
            return [group]
        group["params"] = named = list(params)
        names = group.get("param_names")
        if names is not None and len(names) == len(named):
            named = list(zip(names, named, strict=True))
        if not named or not all(isinstance(p, tuple) and len(p) == 2 for p in named):
            return [group]  # torch refuses it beside groups with names
        own = {k: v for k, v in group.items() if k not in ("params", "param_names")}
        made = self._sorted(named, own, strict=False)
        if len(made) == 1:  # the caller's own dict becomes the group
            made[0] = group | {k: v for k, v in made[0].items() if k != "params"}
            group.update(made[0])
            return [group]
        return made

    def exclude(self, group: dict[str, Any]) -> None:
        """Keep a group from decaying whose parameters are excluded."""
        names = group.get("param_names") or ()
        if names and all(any(e.matches(name) for e in self.excluded) for name in names):
            group["weight_decay"] = 0.0

    def _sorted(
        self, named: list[tuple[str, Any]], own: dict[str, Any], strict: bool
    ) -> list[dict[str, Any]]:
        names = [name for name, _ in named]
        find = assign if strict else _matching
        chosen = find(names, self.groups)
        bare = find(names, self.excluded, "exclude_from_weight_decay")
        ratios = _ratios(names, self.lr_ratio, find)
        sorted_in: dict[tuple[int, bool, float], list[Any]] = {}
        for pair, group, out, ratio in zip(named, chosen, bare, ratios, strict=True):
            sorted_in.setdefault((group, out == 0, ratio), []).append(pair)
        result: list[dict[str, Any]] = []
        for (group, out, ratio), pairs in sorted_in.items():
            settings = {**self.groups[group].hyperparameters, **own} if group >= 0 else dict(own)
            if out:
                settings["weight_decay"] = 0.0
            if self.lr_ratio is not None or LR_RATIO.name in settings:
                settings[LR_RATIO.name] = ratio * own_ratio(settings)
            result.append({"params": pairs, **settings})
        return result


def _matching(names: Sequence[str], groups: Sequence[Group], called: str = "") -> list[int]:
    """As `assign`, for patterns that need not match anything."""
    return [next((k for k, g in enumerate(groups) if g.matches(n)), -1) for n in names]


def own_ratio(settings: Mapping[str, Any]) -> float:
    """The factor on the learning rate that a group has itself; schedulers move the rate, so it is a
    number."""
    given = settings.get(LR_RATIO.name, 1.0)
    if callable(given):
        raise HyperparameterError(
            f"lr_ratio={given!r} is not a number: in torch a scheduler changes the rate, and the "
            f"factor stays"
        )
    return LR_RATIO.check(given)


def exclusions(patterns: Any) -> list[Group]:
    """`exclude_from_weight_decay` as a group.

    Raises:
        HyperparameterError: it is no sequence of patterns.
    """
    if isinstance(patterns, str) or not isinstance(patterns, Iterable | None):
        raise HyperparameterError(
            f"exclude_from_weight_decay={patterns!r} is not a sequence of name patterns: write "
            f'["*.bias", "*norm*"]'
        )
    found = list(cast(Iterable[str], patterns or ()))
    return [Group(found)] if found else []


def _ratios(names: list[str], lr_ratio: LrRatio | None, find: Any) -> list[float]:
    if lr_ratio is None:
        return [1.0] * len(names)
    found: list[Any]
    if callable(lr_ratio):
        found = [lr_ratio(name) for name in names]
    elif not isinstance(lr_ratio, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise HyperparameterError(
            f"lr_ratio={lr_ratio!r} is neither a dict by name pattern, such as "
            f'{{"encoder.*": 0.1}}, nor a function of the name'
        )
    else:
        patterns = [Group(pattern, ratio=value) for pattern, value in lr_ratio.items()]
        found = [
            1.0 if k < 0 else patterns[k].hyperparameters["ratio"]
            for k in find(names, patterns, "lr_ratio")
        ]
    numbers = [_number(ratio) for ratio in found]
    for name, ratio, number in zip(names, found, numbers, strict=True):
        if not 0 <= number < math.inf:
            raise HyperparameterError(
                f"lr_ratio of {name!r} is {ratio!r}: it must be a number in [0, inf)"
            )
    return numbers


def _number(value: Any) -> float:
    """The value as a float; NaN where it is no number."""
    try:
        return math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        return math.nan
