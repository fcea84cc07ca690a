"""What Paddle's optimizers and parameters say of a step, read anew each time: any may be edited.

Paddle keeps it in four places: attributes of the optimizer, its parameter groups, attributes of
each parameter (`optimize_attr`, `regularizer`, `need_clip`), and functions of the user (`lr_ratio`,
`apply_decay_param_fun`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any

import paddle
from paddle.nn import ClipGradByGlobalNorm, ClipGradByNorm, ClipGradByValue
from paddle.regularizer import L2Decay

from isostep.dialects import Spelling
from isostep.errors import HyperparameterError
from isostep.recipe import Clip
from isostep.rules import Rule
from isostep.stepper import HyperGroup

_of_parameter = attrgetter("name", "optimize_attr", "regularizer", "need_clip")
_its_rate = itemgetter("learning_rate")
_PLAIN = (float, int, bool, str, type(None))

OF_ALL = ("amsgrad",)
"""Arguments that Paddle does not look for in groups."""


@dataclass(frozen=True)
class OwnRate:
    """A tensor where a factor on the learning rate is due: Paddle takes it for the rate itself.

    Args:
        value: a number; in a program its variable.
    """

    value: Any

    def __mul__(self, ratio: float) -> OwnRate:
        return OwnRate(self.value * ratio)


Factor = float | OwnRate
"""On the learning rate of an optimizer."""


def rate_of(rate: Any, factor: Factor) -> Any:
    """The learning rate of some parameters, given the optimizer's."""
    return factor.value if isinstance(factor, OwnRate) else rate * factor


class Hyperparameters:
    """What a rule reads of one optimizer.

    Args:
        optimizer: the optimizer.
        rule, spelling: its rule, and how Paddle spells it.
    """

    def __init__(self, optimizer: Any, rule: Rule, spelling: Spelling) -> None:
        self._optimizer, self._rule, self._spelling = optimizer, rule, spelling
        self._named = of_rule(spelling)
        self._decoupled = spelling.decay == "decoupled"

    def raw(self, params: Sequence[Any], owners: Sequence[int]) -> list[Any]:
        """What is set now, to be compared with what was set before.

        Args:
            params: the parameters.
            owners: the parameter group of each.
        """
        optimizer = self._optimizer
        names, rates, regularizers, needs = _attributes(params)
        ratio, chosen = optimizer.lr_ratio, optimizer.decays
        return [
            self.settings(),
            list(owners),
            _scales(rates),
            _readings(regularizers),
            needs,
            None if ratio is None else [_ratio(ratio(p), p) for p in params],
            None if chosen is None else [bool(chosen(name)) for name in names],
            names,
        ]

    def settings(self) -> list[dict[str, Any]]:
        """Hyperparameters, decay and clip of each parameter group."""
        groups = self._optimizer._param_groups if self._optimizer.grouped else [{}]
        return [self._setting(group) for group in groups]

    def _setting(self, group: Mapping[str, Any]) -> dict[str, Any]:
        optimizer = self._optimizer
        found = {a: getattr(optimizer, attribute(optimizer, a)) for a in self._named}
        found |= {a: group[a] for a in self._named if a in group and a not in OF_ALL}
        found = {a: plain(a, value) for a, value in found.items()}
        if self._decoupled:
            decay = group.get("weight_decay", optimizer._weight_decay)
            found["weight_decay"] = plain("weight_decay", decay)
        elif "regularization_coeff" in group:  # Momentum's
            found["weight_decay"] = group["regularization_coeff"]
        else:
            found["weight_decay"] = getattr(
                optimizer, "_regularization_coeff", _coefficient(optimizer.regularization)
            )
        clip = group.get("grad_clip") if group else optimizer._grad_clip
        return found | {"grad_clip": clip, "clip": as_clip(clip)}

    def foreign(self, raw: list[Any]) -> bool:
        """Whether Paddle itself must clip and regularise: there is something that no kernel of
        isostep has."""
        settings, _, _, regularizers, *_ = raw
        clips = [s for s in settings if s["grad_clip"] is not None]
        rescaled = getattr(self._optimizer, "_rescale_grad", 1.0) <= 0 and bool(clips)
        known = all(s["clip"] is not None for s in clips)
        return rescaled or not known or any(map(self._left_to_paddle, regularizers))

    def regularized_by_paddle(self, param: Any) -> bool:
        """Whether the regularisation of a parameter is one that no kernel has."""
        return self._left_to_paddle(_reading(getattr(param, "regularizer", None)))

    def _left_to_paddle(self, own: float | object | None) -> bool:
        """The same of what a parameter's own regularisation was read as."""
        if own is None:
            own = None if self._decoupled else _reading(self._optimizer.regularization)
        if self._decoupled:  # it comes beside the decay
            return own is not None
        return not isinstance(own, float | None)

    def groups(self, raw: list[Any]) -> tuple[list[HyperGroup], list[int], list[Factor]]:
        """Parameters with the same hyperparameters as one group each.

        Returns:
            The groups, the group of each parameter, and the factor on the learning rate in each
            group. Learning rates are left at 1.

        Raises:
            HyperparameterError: a value is out of its range.
        """
        settings, owners, scales, regularizers, needs, ratios, decaying, _ = raw
        apart = self.foreign(raw)
        found: dict[Any, int] = {}
        groups: list[HyperGroup] = []
        factors: list[Factor] = []
        membership: list[int] = []
        for k, owner in enumerate(owners):
            scale = scales[k] * (1.0 if ratios is None else ratios[k])
            decay = self._decay(settings[owner], regularizers[k])
            if decaying is not None and not decaying[k]:
                decay = 0.0
            key = (owner, scale, decay, bool(needs[k]))
            if key not in found:
                found[key] = len(groups)
                groups.append(self._group(settings, key, apart))
                factors.append(scale)
            membership.append(found[key])
        return groups, membership, factors

    def _decay(self, setting: dict[str, Any], regularizer: Any) -> float:
        if self._decoupled or regularizer is None:
            return setting["weight_decay"] or 0.0
        return regularizer if isinstance(regularizer, float) else 0.0

    def _group(self, settings: list[dict[str, Any]], key: Any, apart: bool) -> HyperGroup:
        owner, scale, decay, clipped = key
        given = {a: settings[owner][a] for a in self._named}
        values = self._spelling.resolve(self._rule, {"learning_rate": 1.0, **given})
        values["weight_decay"] = self._rule.hyperparameter("weight_decay").check(decay)
        clip = None if apart else settings[owner]["clip"]
        rescale = getattr(self._optimizer, "_rescale_grad", 1.0)
        if clip is not None and rescale != 1.0:  # which comes after Paddle's clipping
            clip = Clip(**{clip.kind: clip.threshold * rescale})
        own = isinstance(scale, OwnRate)
        extras = {"rate x": scale, "decay": decay} if scale != 1.0 and not own else {"decay": decay}
        words = ["own rate"] * own + [
            f"{name} {value:g}" for name, value in extras.items() if value
        ]
        words += ["not clipped"] * (clip is not None and not clipped)
        return HyperGroup(
            ", ".join([f"group {owner}", *words]),
            values,
            clip=clip,
            unclipped=clip is None or not clipped,
            clip_scope=str(self.scope(settings, owner)),
        )

    def scope(self, settings: list[dict[str, Any]], owner: int) -> int:
        """Which parameters make up one global norm: those of all groups with an equal clip, or
        those of one group. It is named by the first such group."""
        if self._optimizer.clips_per_group:
            return owner

        def same(k: int) -> bool:
            mine, other = settings[owner], settings[k]
            return other["clip"] == mine["clip"] and (
                mine["clip"] is not None or other["grad_clip"] is mine["grad_clip"]
            )

        return next(k for k in range(len(settings)) if same(k))


def of_rule(spelling: Spelling) -> list[str]:
    """The arguments that only the rule reads."""
    return [a for a in spelling.arguments if a not in ("learning_rate", "weight_decay")]


def attribute(optimizer: Any, argument: str) -> str:
    """Where Paddle's classes keep an argument."""
    return f"_{argument}" if hasattr(optimizer, f"_{argument}") else argument


def held_as(optimizer: Any, argument: str) -> bool:
    """Whether an optimizer has an argument as an attribute."""
    return hasattr(optimizer, attribute(optimizer, argument))


def as_clip(clip: Any) -> Clip | None:
    """A clip of Paddle as isostep's; None for none, and for those that kernels do not have."""
    kind = type(clip)  # a subclass may do anything
    if kind is ClipGradByGlobalNorm:
        return Clip(global_norm=clip.clip_norm)
    if kind is ClipGradByNorm:
        return Clip(norm=clip.clip_norm)
    if kind is ClipGradByValue and clip.min == -clip.max:
        return Clip(value=clip.max)
    return None


def _coefficient(regularizer: Any) -> float | None:
    """The coefficient of L2 decay; None of anything else."""
    if isinstance(regularizer, int | float):
        return float(regularizer)
    return float(regularizer._coeff) if type(regularizer) is L2Decay else None


def _reading(regularizer: Any) -> Any:
    """The coefficient of L2 decay, or what else it is."""
    coefficient = _coefficient(regularizer)
    return regularizer if coefficient is None else coefficient


def _attributes(params: Sequence[Any]) -> list[Sequence[Any]]:
    """Of all parameters the name, and what they say of their rate, regularisation and clipping."""
    if not params:
        return [(), (), (), ()]
    try:
        return list(zip(*map(_of_parameter, params), strict=True))
    except AttributeError:  # tensors that are not made as parameters
        defaults = {"name": "", "optimize_attr": None, "regularizer": None, "need_clip": True}
        return [[getattr(p, name, least) for p in params] for name, least in defaults.items()]


def _readings(regularizers: Sequence[Any]) -> Sequence[Any]:
    """What each regularisation is read as; None of none."""
    if regularizers.count(None) == len(regularizers):
        return regularizers
    return tuple([own if own is None else _reading(own) for own in regularizers])


def _scales(rates: Sequence[Any]) -> list[Factor]:
    """The factor on the learning rate of each parameter."""
    try:
        found = list(map(_its_rate, rates))
    except (TypeError, KeyError):
        found = [(a or {}).get("learning_rate", 1.0) for a in rates]
    if set(map(type, found)) == {float}:
        return found
    return [scale if type(scale) is float else _factor(scale) for scale in found]


def _factor(scale: Any) -> Factor:
    if not isinstance(scale, paddle.Tensor) and hasattr(scale, "get_defining_op"):
        # a variable of a program
        return OwnRate(scale)
    number = float(plain("learning_rate of a parameter", scale))
    return OwnRate(number) if isinstance(scale, paddle.Tensor) else number


def _ratio(ratio: Any, param: Any) -> float:
    if not 0 <= float(ratio) < float("inf"):
        raise HyperparameterError(
            f"lr_ratio of {param.name!r} is {ratio!r}: it must be a number in [0, inf)"
        )
    return float(ratio)


def plain(name: str, value: Any) -> Any:
    """Hyperparameters as Python numbers: Paddle takes tensors for some."""
    if type(value) in _PLAIN or isinstance(value, float | int | str):
        return value
    if not hasattr(value, "item"):
        raise HyperparameterError(f"{name}={value!r} is not a number: give one, or a tensor of one")
    return float(value.item())
