"""isostep: deep-learning optimizers, written once and stepped in one fused pass.

    import isostep
    optimizer = isostep.AdamW({"w": w, "b": b}, lr=1e-3, clip=isostep.Clip(global_norm=1.0))
    optimizer.step({"w": gw, "b": gb})

`import isostep` loads neither a framework nor Numba; names are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from isostep import forks as _forks  # noqa: F401  # from now on a fork waits for imports

__version__ = "0.1.0"

_HOMES = {
    "SGD": "isostep.numpy",
    "Adagrad": "isostep.numpy",
    "RMSprop": "isostep.numpy",
    "Adadelta": "isostep.numpy",
    "Adam": "isostep.numpy",
    "AdamW": "isostep.numpy",
    "Adafactor": "isostep.numpy",
    "Optimizer": "isostep.numpy",
    "Clip": "isostep.recipe",
    "EMA": "isostep.recipe",
    "Group": "isostep.groups",
    "Plan": "isostep.plan",
    "Report": "isostep.report",
    "GradientError": "isostep.errors",
    "HyperparameterError": "isostep.errors",
    "ParameterError": "isostep.errors",
    "PartError": "isostep.errors",
    "StateError": "isostep.errors",
    "UnknownNameError": "isostep.errors",
    "set_num_threads": "isostep.engines.threads",
}
_MODULES = ("dialects", "rules", "schedules", "numpy")

if TYPE_CHECKING:
    from isostep import dialects, numpy, rules, schedules
    from isostep.engines.threads import set_num_threads
    from isostep.errors import (
        GradientError,
        HyperparameterError,
        ParameterError,
        PartError,
        StateError,
        UnknownNameError,
    )
    from isostep.groups import Group
    from isostep.numpy import (
        SGD,
        Adadelta,
        Adafactor,
        Adagrad,
        Adam,
        AdamW,
        Optimizer,
        RMSprop,
    )
    from isostep.plan import Plan
    from isostep.recipe import EMA, Clip
    from isostep.report import Report

__all__ = [
    "EMA",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Clip",
    "GradientError",
    "Group",
    "HyperparameterError",
    "Optimizer",
    "ParameterError",
    "PartError",
    "Plan",
    "RMSprop",
    "Report",
    "StateError",
    "UnknownNameError",
    "__version__",
    "dialects",
    "numpy",
    "rules",
    "schedules",
    "set_num_threads",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"isostep.{name}")
    raise AttributeError(f"module 'isostep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
