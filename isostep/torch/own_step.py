"""When torch.optim's own step is taken: for what the fused step would not do as torch does it.

It runs on the same groups and the same state, so an optimizer may go from one to the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from isostep import dialects, extension
from isostep.extension import Cause

_core: Any = torch._C
POINTS = dialects.get("torch").extension_points


class NotOurs(Exception):
    """Raised while a fused step is prepared, which turns out to be torch.optim's own.

    Args:
        cause: why.
    """

    def __init__(self, cause: Cause) -> None:
        super().__init__(*cause)
        self.cause = cause


_TWICE = Cause(
    "with a parameter that is twice in the groups: torch.optim's own step updates it twice",
    "pass each parameter once",
)
_CAPTURABLE = Cause(
    "with capturable=True, for which isostep has no kernel",
    "leave capturable=False",
)
WATCHED = Cause(
    "under a TorchDispatchMode, a transformation of torch.func or torch.jit.trace, which follow "
    "torch's operations and see no kernels",
    "step outside of it",
)
_LEARNED = Cause(
    "with differentiable=True and a hyperparameter that requires a gradient: torch.optim's own "
    "step learns it",
    "detach the hyperparameter",
)


def cause(optimizer: Any) -> Cause | None:
    """Why the next step is torch's own; None if it is a fused one.

    Args:
        optimizer: the optimizer; what its parameters and state say is looked at elsewhere.
    """
    replaced = extension.overridden(optimizer, POINTS)
    if replaced:
        return Cause(
            f"in {type(optimizer).__name__}, which overrides {', '.join(replaced)}: that is called "
            f"by torch.optim's own step only",
            "override step() alone, and call super().step() there",
        )
    groups, differentiable = optimizer.param_groups, False
    for group in groups:
        if group.get("capturable"):
            return _CAPTURABLE
        differentiable = differentiable or group.get("differentiable")
    if differentiable and any(map(_learns, groups)):
        return _LEARNED
    return None


def odd(what: str, oddity: str) -> NotOurs:
    """That something of a step is no memory that kernels could work on.

    Args:
        what: parameter, gradient or state, with its name.
        oddity: as `tensors.oddity` says it.
    """
    return NotOurs(
        Cause(f"with {what}, {oddity}: torch.optim's own step runs", "use a plain tensor")
    )


def is_watched() -> bool:
    """Whether someone follows torch's operations."""
    return bool(
        _core._len_torch_dispatch_stack()
        or _core._functorch.peek_interpreter_stack() is not None
        or _core._get_tracing_state() is not None
    )


def _learns(group: dict[str, Any]) -> bool:
    values = [v for key, value in group.items() if key != "params" for v in _parts(value)]
    return any(isinstance(v, torch.Tensor) and v.requires_grad for v in values)


def _parts(value: Any) -> Any:
    return value if isinstance(value, tuple | list) else (value,)


def repeated(groups: list[dict[str, Any]]) -> Cause | None:
    """Why a step of these groups is torch's own, if a parameter is there twice."""
    places = [id(param) for group in groups for param in group["params"]]
    return _TWICE if len(set(places)) != len(places) else None


def unhooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """The function without the hooks that torch puts around a class's step when the class is first
    used: the step of isostep's class has them already."""
    return getattr(step, "__wrapped__") if getattr(step, "hooked", False) else step  # noqa: B009
