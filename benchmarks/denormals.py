"""Steps on gradients of 1e-20, whose squares are denormal, against steps on usual ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks import own, peers
from benchmarks.cases import Case
from benchmarks.models import Floats
from benchmarks.timing import Contestant, paired_ratio

SMALL = np.float32(1e-20)
STEPS = 20
SUFFIX = ", 1e-20"


def contestants(
    case: Case, params: list[Floats], grads: list[Floats], others: Sequence[str]
) -> list[Contestant]:
    """isostep and the fastest kind of each peer, each with usual and with small gradients; with
    the small ones after so many steps that the second moments are denormal."""
    small = [np.full_like(g, SMALL) for g in grads]
    found: list[Contestant] = []
    for gradients, suffix in ((grads, ""), (small, SUFFIX)):
        made = [own.contestant(case, params, gradients)]
        for name in others:
            made += list(peers.load(name).contestants(case, params, gradients))[:1]
        for contestant in made:
            contestant.name += suffix
            contestant.family = contestant.name
            if suffix:
                for _ in range(STEPS):
                    contestant.step()
        found += made
    return found


def slowdowns(measured: Sequence[Contestant]) -> dict[str, float]:
    """How many times longer a step on small gradients takes, by contestant; paired by rounds."""
    named = {c.name: c for c in measured}
    return {
        name: paired_ratio(named[name + SUFFIX], usual)
        for name, usual in named.items()
        if name + SUFFIX in named
    }
