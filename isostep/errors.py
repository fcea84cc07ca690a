"""The errors isostep raises, and the spelling hint they share.

This module stands beside the layers and imports nothing of the house, so every room may use it.
All of them are `ValueError`s: whoever catches that one built-in catches everything that is refused
because of what was passed in. A message names the thing, shows its value, gives the allowed range
and says what to do.
"""

import difflib
from collections.abc import Iterable


class HyperparameterError(ValueError):
    """Raised when a hyperparameter, schedule argument or group has a value it may not have."""


class GradientError(ValueError):
    """Raised when a gradient is missing, extra, or has the wrong shape, dtype or content."""


class ParameterError(ValueError):
    """Raised when a parameter cannot be updated: read-only, overlapping, given twice."""


class StateError(ValueError):
    """Raised when saved state does not belong to this optimizer or is damaged."""


class PartError(ValueError):
    """Raised when a step is not taken because another process does not take its part of it."""


class UnknownNameError(ValueError):
    """Raised when a name or a group's pattern refers to nothing."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'beta1'?"` for the known name closest to `name`, or `""`.

    Case is ignored, since `LR` for `lr` is a slip as likely as a transposed letter.
    """
    by_folded = {candidate.casefold(): candidate for candidate in known}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return f"; did you mean {by_folded[close[0]]!r}?" if close else ""
