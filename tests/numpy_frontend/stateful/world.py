"""An optimizer over NumPy arrays with all that its user holds, and what is to come of a step.

What is to come is the law: an optimizer whose arrays and state were edited goes on exactly as one
does that is made now, of arrays with these values, and loads this state. What cannot be stepped is
found here once more, by NumPy's own questions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

import isostep
from isostep.names import flatten

from ...table import DTYPES, AnyArray
from ..edits import SHAPE

KINDS = tuple(DTYPES)
SHAPES = (SHAPE, SHAPE, (5,), (), (3, 4), (2, 3, 2, 2), (0,), (1,))


class Options(NamedTuple):
    """How an optimizer is made.

    Args:
        rule: its name.
        arguments: of the optimizer; hyperparameters are away from what is neutral.
    """

    rule: str
    arguments: Mapping[str, Any]


ADAM = {"lr": 0.125, "betas": (0.75, 0.875), "eps": 0.25, "weight_decay": 0.125}
OPTIONS = (
    Options("SGD", {"lr": 0.25, "momentum": 0.75, "dampening": 0.25, "weight_decay": 0.125}),
    Options("SGD", {"lr": 0.25}),  # without slots
    Options("AdamW", ADAM | {"amsgrad": True}),
    Options("AdamW", ADAM | {"state_dtype": {"exp_avg": "bfloat16"}, "maximize": True}),
    Options("AdamW", ADAM | {"master_weights": True, "clip": isostep.Clip(global_norm=0.5)}),
    Options("AdamW", ADAM | {"ema": 0.75, "report": True, "clip": isostep.Clip(norm=0.5)}),
    Options("Adam", {"dialect": "keras", "ema": isostep.EMA(0.75, overwrite_every=3)}),
    Options("Adafactor", {"lr": 0.25, "eps": (0.125, 0.25), "d": 1.5, "min_dim_to_factor": 1}),
    Options("RMSprop", {"lr": 0.25, "eps": 0.25, "centered": True, "nonfinite": "skip"}),
    Options("Adadelta", {"lr": 0.5, "eps": 0.125, "clip": isostep.Clip(value=0.5)}),
    Options("Adagrad", {"lr": 0.25, "eps": 0.125, "nonfinite": "raise"}),
    Options("AdamW", ADAM | {"engine": "array", "ema": 0.75, "master_weights": True}),
    Options("Adafactor", {"lr": 0.25, "engine": "array", "clip": isostep.Clip(norm=0.5)}),
)
GROUPS = (
    (),
    ({"match": "*.1", "lr_ratio": 0.5},),
    ({"match": "w*", "lr": 0.0625}, {"match": "*", "weight_decay": 0.0}),
)


class Nothing(Exception):
    """An edit finds nothing that it could be done to."""


class Form(NamedTuple):
    """What an array must stay, and the order of its axes in memory when it was taken in."""

    shape: tuple[int, ...]
    dtype: Any
    order: tuple[int, ...]

    @classmethod
    def of(cls, array: AnyArray) -> Form:
        order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
        return cls(array.shape, array.dtype, tuple(order))

    def filled(self, values: Any) -> AnyArray:
        """An array of this form, which has its memory for itself."""
        made = np.empty([self.shape[axis] for axis in self.order], self.dtype)
        made = made.transpose(np.argsort(self.order))
        made[...] = values
        return made


class World:
    """An optimizer and its user.

    Args:
        options, groups: how the optimizer is made.
        seed: of the values.
    """

    def __init__(self, options: Options, groups: tuple[dict[str, Any], ...], seed: int) -> None:
        self.options, self.groups, self._seed, self._drawn = options, groups, seed, 0
        self.params: dict[str, Any] = {}
        self.saved: list[dict[str, Any]] = []
        self.rates: list[tuple[str | None, dict[str, Any]]] = []
        """What was set after the optimizer was made."""
        self.optimizer: Any = None
        self.rooms: dict[str, AnyArray] = {}
        """The arrays that parameters are views of."""
        self.undo_slot: Any = None
        """A slot that was made another array, and what it was."""

    def begin(self, params: dict[str, Any]) -> None:
        """Make the optimizer."""
        self.params = params
        self.optimizer = self.anew(params)
        self.meet()

    def anew(self, params: Any) -> Any:
        """An optimizer of other arrays, with the rates of this one."""
        groups = [group for group in self.groups if _used(group, params)]
        made = isostep.Optimizer(
            self.options.rule, params, groups=groups, **copy.deepcopy(dict(self.options.arguments))
        )
        for group, changes in self.rates:
            made.set(group, **changes)
        return made

    def meet(self) -> None:
        """Take what the optimizer has now as what it goes by."""
        entries = self.entries()
        self.forms = {name: Form.of(entries[name]) for name in self.state()["parameters"]}
        self.kept = {
            (name, slot): view if view.base is None else view.base
            for name in self.forms
            for slot, view in self.optimizer.slots(name).items()
        }
        self._kept_as = {place: _form(array) for place, array in self.kept.items()}

    # -- what there is ---------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    @property
    def steps_all(self) -> bool:
        """Whether parameters without gradient are written to: their averages may be."""
        return "ema" in self.options.arguments

    def entries(self) -> dict[str, Any]:
        """What stands under each name."""
        return flatten(self.params)

    def name(self, i: int) -> str:
        return list(self.forms)[i % len(self.forms)]

    def param(self, i: int) -> AnyArray:
        """An array that may be edited."""
        entry = self.entries().get(self.name(i))
        if not isinstance(entry, np.ndarray) or self.gone(entry):
            raise Nothing("there is no array")
        return entry

    def slot(self, i: int, k: int) -> AnyArray:
        """An array that is kept, as the user sees it."""
        name = self.name(i)
        slots = self.optimizer.slots(name)
        if not slots:
            raise Nothing("the rule keeps nothing")
        return list(slots.values())[k % len(slots)]

    def place(self, name: str) -> tuple[Any, Any]:
        """The container of a parameter, and the key in it."""
        *path, last = name.split(".")
        held: Any = self.params
        for part in path:
            held = held[int(part)] if isinstance(held, list) else held[part]
        return held, (int(last) if isinstance(held, list) else last)

    def put(self, name: str, value: Any) -> None:
        """Replace the entry of a parameter."""
        held, key = self.place(name)
        if isinstance(held, list) and key == len(held):
            held.append(value)
        else:
            held[key] = value

    def values(self, shape: Any, dtype: Any = np.float64) -> AnyArray:
        """New values."""
        self._drawn += 1
        chance = np.random.default_rng([self._seed, self._drawn])
        return np.asarray(chance.normal(size=shape).clip(-3, 3)).astype(dtype)

    # -- what cannot be stepped ------------------------------------------------------------------

    def gone(self, array: AnyArray) -> bool:
        """Whether an array is a view of memory that its owner has given back."""
        room = next((r for r in self.rooms.values() if _base(array) is r), None)
        return room is not None and not _inside(array, room)

    def bad(self, written: bool = True) -> set[str]:
        """The names of parameters that no step can be taken of, or that cannot even be read."""
        entries = self.entries()
        sound = {name for name, form in self.forms.items() if self._sound(entries.get(name), form)}
        spans = {name: entries[name] for name in sound}
        clash = {
            name
            for name, a in spans.items()
            for other, b in spans.items()
            if name != other and np.shares_memory(a, b)
        }
        usable = {n for n in sound if not (written and not entries[n].flags.writeable)}
        return self.forms.keys() - {n for n in usable - clash if not _folded(entries[n])}

    def _sound(self, entry: Any, form: Form) -> bool:
        usual = type(entry) in (np.ndarray, np.memmap, np.matrix)
        return usual and (entry.shape, entry.dtype) == form[:2] and not self.gone(entry)

    def bad_slots(self) -> set[str]:
        """The names of parameters of whose slots one is another array now."""
        return {p[0] for p, array in self.kept.items() if _form(array) != self._kept_as[p]}

    # -- what is to come -------------------------------------------------------------------------

    def twin(self, state: Any) -> tuple[Any, Any]:
        """Copied parameters and an optimizer made of them, which has loaded a state.

        In place of what cannot be stepped there is something that can.
        """
        bad, entries = self.bad(), self.entries()
        params = {n: form.filled(0 if n in bad else entries[n]) for n, form in self.forms.items()}
        made = self.anew(params)
        made.load_state_dict(state)
        return params, made

    def snapshot(self) -> dict[str, Any]:
        """Everything that a step may change, as bytes by name."""
        found: dict[str, Any] = {}
        for name, entry in self.entries().items():
            if isinstance(entry, np.ndarray) and not self.gone(entry):
                found[name] = (entry.dtype.str, entry.shape, np.asarray(entry).tobytes())
        found |= {f"{n}.{slot}": a.tobytes() for (n, slot), a in self.kept.items()}
        return found | {"counts": (self.optimizer.iteration, self.optimizer.skipped)}


def seen(optimizer: Any, params: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a step has made, by name; parameters that are left out are so here."""
    state = optimizer.state_dict()
    yield "counts", (state["iteration"], state["skipped"])
    for name, entry in state["parameters"].items():
        yield f"{name}.step", entry["step"]
        for slot, array in entry["slots"].items():
            yield f"{name}.{slot}", array
        if name in params:
            yield name, params[name]


def _used(group: dict[str, Any], params: Any) -> bool:
    """Whether a group's pattern matches something: one that does not is an error."""
    try:
        isostep.SGD(flatten(params), lr=0.1, groups=[group])
    except isostep.errors.UnknownNameError:
        return False
    return True


def _form(array: AnyArray) -> Any:
    return array.dtype.str, array.shape, array.strides, array.flags.writeable


def _base(array: Any) -> Any:
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array


def _inside(array: AnyArray, room: AnyArray) -> bool:
    if not array.size:
        return True
    low, high = np.lib.array_utils.byte_bounds(array)
    first, last = np.lib.array_utils.byte_bounds(room)
    return bool(room.size) and first <= low and high <= last


def _folded(array: AnyArray) -> bool:
    """Whether two elements of an array are one."""
    places = np.zeros(array.shape, np.int64)
    for axis, (length, stride) in enumerate(zip(array.shape, array.strides, strict=True)):
        shape = [1] * array.ndim
        shape[axis] = length
        places = places + (np.arange(length) * stride).reshape(shape)
    starts = np.sort(places, axis=None)
    return bool((np.diff(starts) < array.itemsize).any())
