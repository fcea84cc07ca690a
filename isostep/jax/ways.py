"""Who steps a parameter, in which dtype, and which dtypes come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from isostep.errors import HyperparameterError
from isostep.jax.made import Made
from isostep.jax.own import NewTypes, Own, Type, Types
from isostep.jax.trees import Form
from isostep.stepper import COMPLEX, DTYPES


class Way(NamedTuple):
    """How one parameter is stepped.

    Args:
        dtype: that the rule steps it as; None: optax steps it.
        new: the dtypes of its update and new slots, if it has a gradient.
    """

    dtype: str | None
    new: NewTypes


class Ways:
    """How an optimizer steps parameters.

    Args:
        made: what it is made of.
    """

    def __init__(self, made: Made) -> None:
        self._made = made
        # Then slots stay as they are, whatever becomes of them in optax.
        self._asked = "state_dtype" in made.extras

    def types(
        self, leaf: Any, gradient: Any, slots: Mapping[str, Any], decays: bool
    ) -> Types | None:
        """What optax' arithmetic looks at; None without a gradient."""
        if gradient is None:
            return None
        param, kept = Type.of(leaf), {name: Type.of(array) for name, array in slots.items()}
        if self._asked:
            kept = dict.fromkeys(kept, param)
        return Types(param, Type.of(gradient), tuple(kept.items()), decays)

    def of(
        self,
        form: Form,
        types: Sequence[Types | None] | None = None,
        known: bool = True,
    ) -> list[Way]:
        """How each parameter is stepped.

        Args:
            form: of the parameters.
            types: what their steps are of; default: no step is meant yet.
            known: whether a step is given the parameters.

        Raises:
            HyperparameterError: optax steps it, and isostep's extras ask for more.
            TypeError, ValueError: optax raises it for this parameter.
        """
        types = [None] * len(form.names) if types is None else types
        new = self._new_types(form, types, known)
        ways = [
            Way(_stepped_as(dtype, each), new.get(each, NewTypes(dtype, {})))
            for dtype, each in zip(form.dtypes, types, strict=True)
        ]
        for name, dtype, way in zip(form.names, form.dtypes, ways, strict=True):
            self._check(f"the parameter {name!r} ({dtype})", way)
        return ways

    def _check(self, parameter: str, way: Way) -> None:
        made, out = self._made, "leave it out with optax.masked, or by a partition of the tree"
        if way.dtype is None and (made.own is None or made.extras):
            extras = ", ".join(made.extras) or f"dialect={made.dialect.name!r}"
            raise HyperparameterError(
                f"{parameter} is stepped by optax' own arithmetic alone, without {extras}: {out}"
            )
        if way.dtype not in COMPLEX:
            return
        if not made.dialect.complex_moduli:
            raise HyperparameterError(
                f"{parameter} is complex, and dialect={made.dialect.name!r} has no step for it: "
                f"use dialect='optax', or optax.contrib.split_real_and_imaginary around this one"
            )
        if made.options.clip is not None and made.options.clip.kind == "value":
            raise HyperparameterError(
                f"{parameter} is complex, and Clip(value) is for real numbers: use norm or "
                f"global_norm"
            )
        if self._asked:
            raise HyperparameterError(f"{parameter} is complex, and state_dtype is real: {out}")

    def _new_types(
        self, form: Form, types: Sequence[Types | None], known: bool
    ) -> dict[Types | None, NewTypes]:
        own, kinds = self._made.own, list(dict.fromkeys(t for t in types if t is not None))
        if own is None:
            return {}
        own.new_types((), known)  # raises if parameters are needed
        try:
            found = own.new_types(tuple(kinds), known)
        except Exception:
            for kind in kinds:
                _asked_alone(own, kind, known, form.names[types.index(kind)])
            raise
        slots = [{} if self._asked else new.slots for new in found]
        updates = [new.update for new in found]
        return dict(zip(kinds, map(NewTypes, updates, slots), strict=True))


def _stepped_as(dtype: str, types: Types | None) -> str | None:
    """The dtype that a parameter of a dtype is stepped as: its own, unless what it meets is wider;
    None: the rules have no arithmetic for it."""
    if types is None:
        return dtype if dtype in (*DTYPES, *COMPLEX) else None
    if not types.common:
        return None
    return next((name for name in types.names if name in ("float64", "complex128")), dtype)


def _asked_alone(own: Own, kind: Types, known: bool, name: str) -> None:
    """Raise what optax raises for one parameter, with its name."""
    try:
        own.new_types((kind,), known)
    except Exception as error:
        kinds = (NotImplementedError, TypeError)
        raise next((kind for kind in kinds if isinstance(error, kind)), ValueError)(
            f"optax.{own.name} cannot step {name!r}, a {kind.param.dtype.name} with a gradient of "
            f"{kind.gradient.dtype.name}: {error}; leave it out with optax.masked, or by a "
            f"partition of the tree"
        ) from error
