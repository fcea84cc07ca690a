"""When Paddle's own step is taken: for what the fused step would not do as Paddle does it.

It runs on the same groups and accumulators, so an optimizer may go from one to the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import paddle
from paddle.base import framework

from isostep import dialects, extension
from isostep.errors import ParameterError
from isostep.extension import Cause
from isostep.paddle.accumulators import tensors
from isostep.paddle.memory import overlapping
from isostep.paddle.tensors import has_memory

POINTS = dialects.get("paddle").extension_points


TWICE = Cause(
    "with a parameter that is given twice: Paddle's own step updates it twice",
    "give each parameter once",
)
_OLD_FORM = Cause(
    "in a program of Paddle's old form, to which Paddle's own operations are added",
    "leave FLAGS_enable_pir_api at 1",
)
_VARIABLE = Cause(
    "with a variable of a program as hyperparameter, which Paddle's own operations take",
    "give a number",
)


def of_memory(optimizer: Any, params: Sequence[Any], strided: bool = False) -> Cause | None:
    """Why parameters or what is kept for them lie in memory so that Paddle's own step is due.

    Args:
        optimizer: that has accumulators for them.
        params: dense, with memory.
        strided: take them also where they are not contiguous.
    """
    found: list[tuple[str, Any]] = []
    for param in params:
        found.append((f"parameter {param.name!r}", param))
        found += [
            (f"the {name} of parameter {param.name!r}", tensor)
            for name, tensor in tensors(optimizer, param).items()
            if has_memory(tensor)
        ]
    for name, tensor in found:
        if not strided and not tensor.is_contiguous():
            return Cause(
                f"with {name} not contiguous, which Paddle's own step copies",
                "give it contiguous memory: tensor.set_value(tensor.contiguous())",
            )
    shared = overlapping([tensor for _, tensor in found])
    if shared:
        first, second = (found[k][0] for k in shared)
        return Cause(
            f"with memory that {first} and {second} share: Paddle's own step writes one after the "
            f"other",
            "give each its own memory",
        )
    return None


def of_power(param: Any) -> Cause:
    """Why powers of the betas that stand for no count of steps ask for Paddle's own step."""
    return Cause(
        f"with powers of the betas of {param.name!r} that no count of steps gives, as after a "
        f"change of the betas",
        "leave the betas as they are, or set the accumulators beta1_pow_acc and beta2_pow_acc to "
        "beta ** (steps + 1)",
    )


def cause(optimizer: Any, params: Iterable[Any]) -> Cause | None:
    """Why the next step of these parameters is Paddle's own; None if it is a fused one."""
    return replaced(optimizer) or (TWICE if repeats(params) else None)


def replaced(optimizer: Any) -> Cause | None:
    """The same of the optimizer itself: overrides, and what it is in a program."""
    names = extension.overridden(optimizer, POINTS)
    if names:
        return Cause(
            f"in {type(optimizer).__name__}, which overrides {', '.join(names)}: that is called by "
            f"paddle.optimizer's own step only",
            "override step() alone, and call super().step() there",
        )
    if paddle.in_dynamic_mode():
        return None
    if not framework.in_pir_mode():
        return _OLD_FORM
    return _VARIABLE if any(map(_is_variable, optimizer.hyperparameters())) else None


def _is_variable(value: Any) -> bool:
    return hasattr(value, "get_defining_op")


def repeats(params: Iterable[Any]) -> bool:
    """Whether one of the parameters is there twice."""
    places = [id(p) if paddle.in_dynamic_mode() else p.name for p in params]
    return len(set(places)) != len(places)


def refuse(optimizer: Any, because: Cause, used: list[str]) -> None:
    """Raise if Paddle's own step cannot be taken.

    Args:
        optimizer: the optimizer.
        because: why it would be.
        used: options of isostep that it does not have.

    Raises:
        HyperparameterError: there are such options.
        ParameterError: Paddle has no such class.
    """
    extension.refuse(used, *because)
    if not _has_own_step(type(optimizer)):
        raise ParameterError(
            f"Paddle has no {extension.drop_in_of(type(optimizer)).__name__}, which is asked for "
            f"{because.why}; {because.way_out}"
        )


def check_subclass(cls: type) -> None:
    """Refuse a user's class whose overrides no step would call.

    Raises:
        TypeError: Paddle has no class of this rule, and the subclass overrides a part of its step.
    """
    if "rule" in vars(cls) or _has_own_step(cls):
        return
    made = extension.drop_in_of(cls)
    names = [n for n in POINTS if getattr(cls, n, None) is not getattr(made, n, None)]
    if names:
        raise TypeError(
            f"{cls.__name__} overrides {', '.join(names)}, which nothing calls: Paddle has no "
            f"{made.__name__}; override step(), or define _append_optimize_op() as well"
        )


def _has_own_step(cls: Any) -> bool:
    return cls._append_optimize_op is not paddle.optimizer.Optimizer._append_optimize_op
