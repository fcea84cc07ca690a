"""optax' own transformation of the same arguments as an optimizer has.

It is asked for what isostep does not decide: how a state is built, which dtypes updates and states
have, and what is an error. It also steps parameters that the rules have no arithmetic for, such as
integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import jax

from isostep.jax.layout import Kept, owners, read, written
from isostep.stepper import COMPLEX, DTYPES

MASKS = ("mask", "weight_decay_mask")
"""optax' arguments that say what decays."""


class Type(NamedTuple):
    """The dtype of an array, and whether it gives way to those of others."""

    dtype: Any
    weak: bool

    @classmethod
    def of(cls, array: Any) -> Type:
        """That of an array."""
        return cls(array.dtype, bool(getattr(array, "weak_type", False)))

    def scalar(self) -> jax.ShapeDtypeStruct:
        """One number of this type."""
        return jax.ShapeDtypeStruct((), self.dtype, weak_type=self.weak)


class Types(NamedTuple):
    """What optax' arithmetic looks at in a parameter.

    Args:
        param, gradient: their types.
        slots: the types of the slots by name.
        decays: whether weight decay is for it.
    """

    param: Type
    gradient: Type
    slots: tuple[tuple[str, Type], ...]
    decays: bool

    @property
    def names(self) -> list[str]:
        """The names of all dtypes."""
        return [t.dtype.name for t in (self.param, self.gradient, *dict(self.slots).values())]

    @property
    def common(self) -> bool:
        """Whether isostep's rules have arithmetic for it: real or complex numbers throughout."""
        return set(DTYPES).issuperset(self.names) or set(COMPLEX).issuperset(self.names)


class NewTypes(NamedTuple):
    """The dtypes of an update and of new slots by name."""

    update: str
    slots: dict[str, str]


class Own:
    """optax' transformation.

    Args:
        function: of optax, which makes it.
        given: what it is called with.
        slots: the names of slots in states of such functions.

    Attributes:
        transformation: it, for parameters as its user has them.
        new_types: `_new_types`, computed once for each question.
    """

    def __init__(
        self, function: Callable[..., Any], given: Mapping[str, Any], slots: Sequence[str]
    ) -> None:
        self.name = function.__name__
        self._make, self._known = partial(function, **given), slots
        self._mask = next((name for name in MASKS if given.get(name) is not None), None)
        self.transformation = self._make()
        # What is cached must hold no array: it may be traced.
        self.new_types = cache(self._new_types)

    def listed(self, decays: Sequence[bool]) -> Any:
        """It, for a list of parameters of which some decay."""
        return self._make(**{self._mask: list(decays)}) if self._mask else self._make()

    def read(self, state: Any) -> Kept:
        """What a state has."""
        return read(state, self._known)

    @cached_property
    def slots(self) -> list[str]:
        """The names of the slots that it keeps."""
        return list(self.read(self._empty()).slots)

    @cached_property
    def states(self) -> list[str]:
        """The states of optax that one of its states consists of."""
        return owners(self._empty())

    def _empty(self) -> Any:
        return jax.eval_shape(self.listed([]).init, [])

    def _new_types(self, types: tuple[Types, ...], known: bool) -> tuple[NewTypes, ...]:
        """The dtypes after a step of such parameters.

        Args:
            types: those of some parameters.
            known: whether the step is given the parameters.

        Raises:
            Exception: what optax raises.
        """
        own = self.listed([t.decays for t in types])
        params = [t.param.scalar() for t in types]
        grads = [t.gradient.scalar() for t in types]
        before = {name: [dict(t.slots)[name].scalar() for t in types] for name in self.slots}
        shaped = jax.eval_shape(own.init, params)
        kept = self.read(shaped)
        state = written(shaped, Kept(before, kept.counts))
        updates, after = jax.eval_shape(own.update, grads, state, params if known else None)
        slots = self.read(after).slots
        return tuple(
            NewTypes(update.dtype.name, {name: new[k].dtype.name for name, new in slots.items()})
            for k, update in enumerate(updates)
        )

    def step(
        self,
        grads: list[Any],
        params: list[Any],
        kept: Kept,
        decays: Sequence[bool],
        known: bool,
    ) -> tuple[list[Any], dict[str, list[Any]]]:
        """A step of a list of parameters: their updates and new slots.

        Args:
            grads, params: of each; without parameters, the gradients stand for them.
            kept: their slots, and the counts.
            decays: whether weight decay is for each.
            known: whether the parameters are known.
        """
        own = self.listed(decays)
        state = written(jax.eval_shape(own.init, params), kept)
        updates, after = own.update(grads, state, params if known else None)
        return updates, self.read(after).slots
