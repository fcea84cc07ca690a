"""isostep's side: a whole `step` call on NumPy arrays, Python included."""

from __future__ import annotations

from benchmarks.cases import EMA_MOMENTUM, GLOBAL_NORM, Case
from benchmarks.models import Floats
from benchmarks.timing import Contestant
from isostep.numpy import Optimizer
from isostep.recipe import EMA, Clip

NAME = "isostep"


def optimizer(case: Case, params: list[Floats]) -> Optimizer:
    """The optimizer of `case`, on copies of `params` named by their place."""
    return Optimizer(
        case.rule,
        {str(k): p.copy() for k, p in enumerate(params)},
        dialect="torch",
        clip=Clip(global_norm=GLOBAL_NORM) if case.composite else None,
        ema=EMA(EMA_MOMENTUM, start="first_update") if case.composite else None,
        **case.hyperparameters,
    )


def contestant(
    case: Case, params: list[Floats], grads: list[Floats], name: str = NAME
) -> Contestant:
    """`optimizer.step(grads)`; the gradients are read where they lie."""
    made = optimizer(case, params)
    return on_gradients(made, grads, name)


def on_gradients(made: Optimizer, grads: list[Floats], name: str = NAME) -> Contestant:
    """The step of an optimizer with these gradients."""
    named = {str(k): g for k, g in enumerate(grads)}
    return Contestant(name, NAME, lambda: made.step(named))
