"""The hyperparameters of a group, and how its learning rate follows the optimizer's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, cast

from isostep.dialects.base import Spelling
from isostep.errors import HyperparameterError
from isostep.rules.base import Hyperparameter, Rule

LR_RATIO = Hyperparameter("lr_ratio", 1.0, "factor on the learning rate of the optimizer")


def group_values(
    spelling: Spelling,
    rule: Rule,
    default: Mapping[str, Any],
    given: Mapping[str, Any],
    concretely: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> tuple[dict[str, Any], Any]:
    """What holds for a group.

    Args:
        spelling, rule: how its hyperparameters are called and checked.
        default: the optimizer's own values, resolved.
        given: the group's, in either vocabulary, and `lr_ratio`: a factor on the optimizer's
            learning rate, a number in [0, inf) or a callable that gives it. A number as learning
            rate, where the optimizer's is a schedule, is the rate at the start: the schedule goes
            on from there in proportion. A schedule of the group's own stands for itself.
        concretely: a context in which a schedule gives numbers.

    Returns:
        The values by the rule's names, and the factor on the learning rate.

    Raises:
        UnknownNameError, HyperparameterError: as `Spelling.resolve`; or a number is given as the
            learning rate under a schedule that does not start at its full rate.
    """
    given = dict(given)
    ratio: Any = LR_RATIO.check(given.pop("lr_ratio", 1.0))
    values = spelling.changed(rule, default, given)
    schedule: Any = default["lr"]
    rate: Any = values["lr"]
    if callable(schedule) and isinstance(rate, float):
        with concretely():
            first, second = (float(cast(Any, schedule)(t)) for t in (0, 1))
        if first <= 0 or second > first:
            raise HyperparameterError(
                f"a group's learning rate {rate!r} is that of the first step, and the optimizer's "
                f"schedule warms up from {first:g}: give the group lr_ratio, a factor on the "
                f"schedule, or a schedule of its own"
            )
        factor = rate / first
        ratio = _times(ratio, factor)
        values["lr"] = schedule
    return values, ratio


def _times(ratio: Any, factor: float) -> Any:
    if not callable(ratio):
        return ratio * factor
    schedule: Any = ratio
    return lambda t: schedule(t) * factor
