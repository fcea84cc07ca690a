"""Making the drop-in classes: a class of torch.optim with isostep's step before it."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar, cast

import torch

from isostep import dialects, rules
from isostep.torch import own_step
from isostep.torch.optimizer import FusedStep
from isostep.torch.options import Extras

EXTRA_ARGUMENTS = (
    "clip",
    "ema",
    "groups",
    "dialect",
    "decay",
    "master_weights",
    "state_dtype",
    "nonfinite",
    "lazy",
    "report",
    "exclude_from_weight_decay",
    "lr_ratio",
)
T = TypeVar("T", bound=torch.optim.Optimizer)


def drop_in(torch_class: type[T]) -> type[T]:
    """A class with the name and signature of `torch_class` and isostep's step."""
    name = torch_class.__name__
    spelling = dialects.get("torch").spelling(name)
    rule = rules.get(spelling.rule)
    own: dict[str, Any] = {
        "rule": rule.name,
        "arguments": frozenset(inspect.signature(torch_class).parameters) - {"params"},
        "keeps_step": name != "SGD",  # torch's SGD counts nothing
        "__module__": "isostep.torch",
    }
    if hasattr(torch_class, "share_memory"):
        own["share_memory"] = _share_memory
    made = type(name, (FusedStep, torch_class), own)
    made.__doc__ = _documentation(name, rule)
    signature = inspect.signature(torch_class)
    extra = [
        inspect.Parameter(a, inspect.Parameter.KEYWORD_ONLY, default=_default(a))
        for a in EXTRA_ARGUMENTS
    ]
    made.__signature__ = signature.replace(  # pyright: ignore[reportAttributeAccessIssue]
        parameters=[*signature.parameters.values(), *extra]
    )
    return cast(type[T], made)


def _share_memory(self: Any) -> None:
    """Move the state to shared memory."""
    cast(Any, super(FusedStep, self)).share_memory()
    self._binding = None  # what it knows of addresses is no longer true


def _default(argument: str) -> Any:
    field = Extras.__dataclass_fields__.get(argument)
    return field.default if field is not None else (None if argument == "lr_ratio" else ())


def _documentation(name: str, rule: rules.Rule) -> str:
    return f"""torch.optim.{name} in one fused step: the same arguments, groups, state and numbers.

    torch.optim's own step runs, and no option below but groups and exclude_from_weight_decay can be
    set, in a subclass that overrides {" or ".join(own_step.POINTS)},
    with a parameter that is there twice, with capturable=True, with hyperparameters that require a
    gradient under differentiable=True, with parameters, gradients or state of classes with
    behaviour of their own (DTensor) or that share memory, and where torch's operations are traced.

    Args:
        params, and all arguments of torch.optim.{name}: as there.
        clip: `isostep.Clip(global_norm=...)`, `Clip(norm=...)` or `Clip(value=...)`.
        ema: `isostep.EMA` or its momentum; see `averaged_params`.
        groups: `isostep.Group(pattern, **hyperparameters)` over names; needs named parameters.
            `lr_ratio` among them is a factor on the learning rate.
        dialect: whose formulas; names and defaults stay torch's.
        decay: `"coupled"` or `"decoupled"`; None is torch's way.
        master_weights: float32 masters of float16 and bfloat16 parameters.
        state_dtype: dtype of the slots; None is the parameter's.
        nonfinite: `"propagate"`, `"skip"` or `"raise"`.
        lazy: sparse gradients touch only the rows that they have.
        report: measure norms in each step; see `report`.
        exclude_from_weight_decay: name patterns of parameters that do not decay.
        lr_ratio: factor on the learning rate, by name pattern or as a function of the name.

    Slots: {", ".join(s.name for s in rule.slots)}.
    """
