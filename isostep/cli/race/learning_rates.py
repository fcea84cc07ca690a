"""Which learning rates an optimizer tries: as many for each, placed where they tell most.

A fixed grid around a default would favour the optimizers whose default happens to fit the task.
Here each optimizer walks from its own default, a decade at a time, until the best rate has a worse
one on either side, and spends what is left of its budget halving the gaps beside the best.
"""

import math
from collections.abc import Mapping

from isostep.cli.race.errors import RaceError


def next_learning_rate(centre: float, tried: Mapping[float, float]) -> float:
    """Return the learning rate to try next, never one of `tried`.

    Args:
        centre: where the walk starts, > 0.
        tried: mean validation loss of each learning rate tried so far; infinity where it diverged.
    """
    if not tried:
        return centre
    # Of equal losses (all diverged) the smallest rate is best, so that the walk goes down.
    best = min(sorted(tried), key=tried.__getitem__)
    above = min((rate for rate in tried if rate > best), default=None)
    below = max((rate for rate in tried if rate < best), default=None)
    if above is None and math.isfinite(tried[best]):
        return _short(best * 10, tried)
    if below is None or above is None:
        return _short(best / 10, tried)
    gap_above, gap_below = math.log(above / best), math.log(best / below)
    if math.isclose(gap_above, gap_below, rel_tol=0.1):
        neighbour = above if tried[above] < tried[below] else below
    else:
        neighbour = above if gap_above > gap_below else below
    return _short(math.sqrt(best * neighbour), tried)


def at_the_edge(best: float, tried: Mapping[float, float]) -> bool:
    """Return whether the best rate has no worse rate on both sides, so that more may do better."""
    return best in (min(tried), max(tried))


def parse_learning_rates(text: str) -> int | tuple[float, ...]:
    """Read `5`, how many rates to try, or `0.001,0.01`, the rates themselves.

    Raises:
        RaceError: the text is neither.
    """
    try:
        if text.strip().isdecimal():
            return int(text)
        return tuple(float(rate) for rate in text.split(",") if rate.strip())
    except ValueError:
        raise RaceError(
            f"cannot read the learning rates {text!r}: write how many, such as 5, or the rates "
            "with commas between them, such as 0.001,0.01"
        ) from None


def _short(rate: float, tried: Mapping[float, float]) -> float:
    """Return `rate` to two significant digits, or as many as tell it from those tried."""
    candidates = (float(f"{rate:.{digits}g}") for digits in range(2, 18))
    return next(candidate for candidate in candidates if candidate not in tried)
