"""What an optimizer keeps, and the two layouts that it has in users' hands.

Where isostep keeps no more than optax, a state is optax' own, field by field: a checkpoint and
`optax.tree` see no difference, and a run goes on in either library. Where there is more to keep, it
is a `State`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import optax

from isostep.errors import HyperparameterError

Field = Callable[[str, str, Any], Any]
"""Gets the class of a state of optax, the name of a field and its value; gives the new value."""

_INNER = "inner_state"  # where optax' wrappers have what they wrap
_COUNT = "count"


class State(NamedTuple):
    """What an optimizer keeps that keeps more than optax does; a pytree.

    Args:
        count: number of completed steps, int32.
        slots: by the dialect's name of each slot a tree like the parameters; an array of one zero
            stands where a parameter has no such slot.
        average: moving average of the parameters, or None.
        master: float32 copies of float16 and bfloat16 parameters, or None.
        statistics: what the last step measured, or None; see `Optimizer.report`.
    """

    count: Any
    slots: dict[str, Any]
    average: Any = None
    master: Any = None
    statistics: Any = None


@dataclass(frozen=True)
class Kept:
    """A state of either layout, read.

    Args:
        slots: the trees of slots by the dialect's names.
        counts: numbers of completed steps by the state of optax that has them; of a `State`, one.
        average, master, statistics: as in `State`.
    """

    slots: dict[str, Any]
    counts: dict[str, Any] = field(default_factory=dict[str, Any])
    average: Any = None
    master: Any = None
    statistics: Any = None

    @property
    def count(self) -> Any:
        """The count of the rule: the first, where optax has several; 0 where it needs none."""
        return next(iter(self.counts.values()), 0)

    def advanced(self) -> dict[str, Any]:
        """The counts after one more step."""
        return {owner: optax.safe_increment(count) for owner, count in self.counts.items()}


def read(state: Any, slots: Collection[str]) -> Kept:
    """What a state of either layout has.

    Args:
        state: a `State`, or a state of optax.
        slots: the names of slots; other fields of optax' states are left alone.

    Raises:
        HyperparameterError: it is neither.
    """
    if isinstance(state, State):
        return Kept(dict(state.slots), {"": state.count}, *state[2:])
    if not isinstance(state, tuple | list):
        raise HyperparameterError(
            f"the state is a {type(state).__name__}, and neither optax' nor isostep's: if it comes "
            f"from a file, restore it into the structure of optimizer.init(params)"
        )
    kept = Kept({})

    def note(owner: str, name: str, value: Any) -> Any:
        if name in slots:
            kept.slots[name] = value
        elif name == _COUNT:
            kept.counts[owner] = value
        return value

    rebuilt(state, note)
    return kept


def written(state: Any, kept: Kept) -> Any:
    """A state of the layout of `state` that has what is kept."""
    if isinstance(state, State):
        return State(kept.count, kept.slots, kept.average, kept.master, kept.statistics)

    def new(owner: str, name: str, value: Any) -> Any:
        return kept.counts.get(owner, kept.count) if name == _COUNT else kept.slots.get(name, value)

    return rebuilt(state, new)


def owners(state: Any) -> list[str]:
    """The classes of the states that a state of optax consists of."""
    if hasattr(state, "_fields"):
        inner = getattr(state, _INNER, ())
        return [type(state).__name__, *owners(inner)]
    parts = state if isinstance(state, tuple | list) else ()
    return [name for part in parts for name in owners(part)]


def rebuilt(state: Any, new: Field) -> Any:
    """A state of optax with new values in its fields."""
    if hasattr(state, "_fields"):
        owner = type(state).__name__
        values = {
            name: rebuilt(value, new) if name == _INNER else new(owner, name, value)
            for name, value in state._asdict().items()
        }
        return state._replace(**values)
    if isinstance(state, tuple | list):  # optax takes a list, and gives back a tuple
        return tuple(rebuilt(part, new) for part in state)
    return state
