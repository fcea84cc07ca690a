"""Making the drop-in classes: a class of paddle.optimizer with isostep's step before it."""

from __future__ import annotations

import inspect
from typing import Any

from isostep import dialects
from isostep.dialects import Spelling
from isostep.paddle.optimizer import FusedStep
from isostep.paddle.options import Extras


def drop_in(paddle_class: Any, spelling: Spelling | None = None) -> Any:
    """A class with the name and signature of `paddle_class` and isostep's step.

    Args:
        paddle_class: Paddle's own class, or one made like it.
        spelling: how Paddle spells its rule; default: as the dialect says.
    """
    spelling = spelling or dialects.get("paddle").spelling(paddle_class.__name__)
    signature = inspect.signature(paddle_class)
    own = {
        "rule": spelling.rule,
        "spelling": spelling,
        "paddle_signature": signature,
        "__module__": "isostep.paddle",
    }
    made: Any = type(spelling.class_name, (FusedStep, paddle_class), own)
    made.__doc__ = _documentation(spelling, paddle_class)
    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default)
        for name, field in Extras.__dataclass_fields__.items()
    ]
    made.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *extra])
    return made


def _documentation(spelling: Spelling, paddle_class: Any) -> str:
    name = spelling.class_name
    known = paddle_class.__module__.startswith("paddle.")
    first = f"paddle.optimizer.{name}" if known else f"{name}, as Paddle would have it,"
    own = f"All arguments of paddle.optimizer.{name}: as there." if known else ""
    arguments = (
        own
        or inspect.cleandoc(paddle_class.__doc__).partition("Args:\n")[2].split("\n\n")[0].strip()
    )
    return f"""{first} in one fused step: the same arguments, groups, state and numbers.

    Paddle's own step runs, and no option of isostep can be set, in a subclass that overrides a
    method which that step calls (`_append_optimize_op`, `_finish_update`, ...), and with a
    parameter that is given twice.

    Args:
        {arguments}
        parameters: also pairs of name and parameter, `layer.named_parameters()`; then a state
            finds its parameters by these names.
        ema: `isostep.EMA` or its momentum; see `averaged_params`.
        nonfinite: `"propagate"`, `"skip"` or `"raise"`.
        clip_per_group: take a global norm over each parameter group alone, as Paddle does, and not
            over all of them.
        report: measure norms in each step; see `report`.
        engine: `"native"` (generated kernels on the CPU) or `"array"` (Paddle's own operations,
            which programs and other devices always get).

    Formula: {spelling.formula}.
    """
