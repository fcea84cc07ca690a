"""What the peers of both Keras share: their own classes and isostep's, in the same step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.cases import EMA_MOMENTUM, GLOBAL_NORM, LEARNING_RATE, Case
from benchmarks.models import Floats
from benchmarks.peers import FRONT_ENDS
from benchmarks.timing import Contestant

Step = Callable[[Case, list[Floats], list[Floats], Any], Callable[[], object]]
"""Makes a step of a case by the classes of a module."""
Contestants = Callable[[Case, list[Floats], list[Floats]], Iterator[Contestant]]
FrontEnd = Callable[[Case, list[Floats], list[Floats]], Contestant]


def pair(peer: str, step: Step, theirs: Any, ours: Any) -> tuple[Contestants, FrontEnd]:
    """What a peer's module offers: the framework's own optimizer, and isostep's in its place."""

    def contestants(case: Case, params: list[Floats], grads: list[Floats]) -> Iterator[Contestant]:
        yield Contestant(peer, peer, step(case, params, grads, theirs))

    def front_end(case: Case, params: list[Floats], grads: list[Floats]) -> Contestant:
        name = FRONT_ENDS[peer]
        return Contestant(name, name, step(case, params, grads, ours))

    return contestants, front_end


def optimizer(case: Case, variables: list[Any], classes: Any) -> Any:
    """The optimizer of `case`, the framework's own or isostep's, built for `variables`."""
    options: dict[str, Any] = {"learning_rate": LEARNING_RATE[case.rule], **case.hyperparameters}
    if case.composite:
        options |= {"global_clipnorm": GLOBAL_NORM, "use_ema": True, "ema_momentum": EMA_MOMENTUM}
    made = getattr(classes, case.rule)(**options)
    made.build(variables)
    return made
