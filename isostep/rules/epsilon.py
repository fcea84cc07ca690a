"""Where epsilon sits in `sqrt(v + eps_root) + eps`: frameworks fill one place or the other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from isostep.rules.base import Guard, Guards, Hyperparameter

EPS_IN_ROOT = Hyperparameter("eps_in_root", False, "add epsilon inside the square root, not after")


def eps_guards(o: SimpleNamespace) -> Guards:
    """The guards of that denominator, for a mean of squares `v`."""
    return ((Guard("eps", power=0.5), Guard("eps_root")),)


def eps_coefficients(h: SimpleNamespace) -> dict[str, Any]:
    """`eps_root` and `eps` of the denominator; the unused one is zero."""
    inside, outside = (h.eps, 0.0) if h.eps_in_root else (0.0, h.eps)
    return {"eps_root": inside, "eps": outside}


def scaled(eps: Any, factor: Any) -> Any:
    """Their product; zero stays the number zero, whatever the factor is, so that compilers see
    that nothing is added."""
    return eps if isinstance(eps, float) and eps == 0.0 else eps * factor
