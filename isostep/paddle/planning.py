"""What a step over all parameters of an optimizer would be, without memory: for plans, and to tell
what a state must hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from isostep import dialects, rules
from isostep.errors import ParameterError
from isostep.functional import stand_in
from isostep.paddle.accumulators import unkept
from isostep.paddle.crew import CREW
from isostep.paddle.hyper import Factor, Hyperparameters, rate_of
from isostep.paddle.tensors import check_dtype, dtype_name
from isostep.plan import Plan
from isostep.rules import Rule
from isostep.stepper import Engine, Stepper


def dry(optimizer: Any, rule: Rule, frozen: bool = False) -> Stepper:
    """A stepper over stand-ins for the parameters of an optimizer.

    Args:
        optimizer: the optimizer.
        rule: its rule.
        frozen: take those in as well that stop gradients.

    Raises:
        ParameterError: there are none.
    """
    params = [p for p in optimizer.all_parameters() if frozen or not p.stop_gradient]
    if not params:
        raise ParameterError("the optimizer has no parameters that can be stepped")
    hyper = Hyperparameters(optimizer, rule, optimizer.spelling)
    raw = hyper.raw(params, optimizer.owners([(p, None) for p in params]))
    rate = optimizer.rate()
    return of_stand_ins(optimizer, hyper, raw, params, lambda factor: rate_of(rate, factor))


def of_stand_ins(
    optimizer: Any,
    hyper: Hyperparameters,
    raw: list[Any],
    params: Sequence[Any],
    rate: Callable[[Factor], Any],
    engine: Engine | None = None,
) -> Stepper:
    """A stepper of what has shape and dtype and no memory.

    Args:
        optimizer, hyper: whose settings they are.
        raw: what is set now for these parameters.
        params: the parameters.
        rate: the learning rate times a factor.
        engine: what runs a step; default: what the optimizer was asked for.

    Raises:
        ParameterError: a parameter is not of a known floating dtype.
    """
    groups, membership, factors = hyper.groups(raw)
    for group, factor in zip(groups, factors, strict=True):
        group.values["lr"] = rate(factor)
    made = Stepper(
        rules.get(optimizer.rule),
        dialects.get("paddle"),
        optimizer.spelling,
        groups,
        optimizer.options(),
        engine or optimizer.engine,
        unkept,
        crew=CREW,
    )
    for param, group in zip(params, membership, strict=True):
        check_dtype(param)
        own = stand_in(tuple(param.shape), dtype_name(param.dtype))
        made.add(param.name, own, group, own=own)
    return made


def plan(optimizer: Any, rule: Rule) -> Plan:
    """What a step will do if every parameter has a gradient of its own dtype."""
    made = dry(optimizer, rule)
    return made.plan(tuple(leaf.array.dtype.name for leaf in made.leaves))
