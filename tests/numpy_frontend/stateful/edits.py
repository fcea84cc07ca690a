"""What NumPy users do between two steps: to arrays, to the params, to states, to the optimizer.

Each edit gets a world and two numbers, of which the first says which parameter, the second how.
"""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isostep import HyperparameterError, ParameterError, StateError

from ...table import AnyArray
from ..edits import FOLLOWED, REFUSED, SLOT_EDITS
from .world import Nothing, World

Edit = Callable[[World, int, int], None]
EDITS: dict[str, Edit] = {}
CANNOT = (ValueError, TypeError, AttributeError, IndexError)
"""What NumPy raises where an edit is not possible."""


def edit(function: Edit) -> Edit:
    EDITS[function.__name__] = function
    return function


def one_of(k: int, choices: Any) -> Any:
    return list(choices)[k % len(list(choices))]


# -- arrays in place -------------------------------------------------------------------------------


@edit
def what_leaves_an_array_what_it_is(w: World, i: int, k: int) -> None:
    array = w.param(i)
    try:
        one_of(k, FOLLOWED.values())[0](array)
    except CANNOT as error:
        raise Nothing("NumPy refuses it") from error


@edit
def what_makes_an_array_another(w: World, i: int, k: int) -> None:
    array = w.param(i)
    try:
        one_of(k, REFUSED.values())[0](array)
    except CANNOT as error:
        raise Nothing("NumPy refuses it") from error


@edit
def undo(w: World, i: int, k: int) -> None:
    """Make everything as it was, in place as far as NumPy can, or by other arrays."""
    for name in w.bad():
        entry, form = w.entries().get(name), w.forms[name]
        if k % 2 and isinstance(entry, np.ndarray) and entry.flags.owndata:
            try:
                entry.flags.writeable = True
                entry.dtype = form.dtype
                entry.resize(form.shape, refcheck=False)
            except CANNOT:
                pass
        if name in w.bad():
            w.put(name, form.filled(w.values(form.shape)))


@edit
def order_of_memory(w: World, i: int, k: int) -> None:
    """Other strides over the same memory."""
    array = w.param(i)
    if array.ndim < 2 or len({*array.shape}) > 1 or not array.flags.owndata:
        raise Nothing("it is not square")
    array.strides = array.strides[::-1]


@edit
def write_into_a_parameter(w: World, i: int, k: int) -> None:
    array = w.param(i)
    if not array.flags.writeable:
        raise Nothing("it is read-only")
    if k % 3 == 0:
        array *= np.asarray(0.5).astype(array.dtype)
    elif k % 3 == 1:
        array[...] = w.values(array.shape)
    else:
        array.fill(0.5)


@edit
def give_the_room_back(w: World, i: int, k: int) -> None:
    """What a parameter is a view of is resized."""
    room = w.rooms.get(w.name(i))
    if room is None:
        raise Nothing("it is no view of a room")
    rows = one_of(k, (0, 3, len(room), 1 << 14))
    room.resize((rows, *room.shape[1:]), refcheck=False)


# -- what stands in the params ---------------------------------------------------------------------


def another(w: World, name: str, k: int) -> AnyArray:
    """An array that a parameter can be replaced by."""
    form = w.forms[name]
    values = w.values(form.shape, form.dtype)
    if k % 6 == 0:
        return values
    if k % 6 == 1:
        return values.copy(order="F")
    if k % 6 == 2:
        wide = np.zeros((*form.shape, 2), form.dtype)
        wide[..., 1] = values
        return wide[..., 1]
    if k % 6 == 3:
        return values[::-1] if values.ndim else values
    if k % 6 == 4 and values.size:
        with tempfile.TemporaryDirectory() as folder:
            mapped = np.memmap(Path(folder) / "w", form.dtype, "w+", shape=form.shape)
        mapped[...] = values
        return mapped
    return values.T.copy().T


@edit
def replace(w: World, i: int, k: int) -> None:
    name = w.name(i)
    w.put(name, another(w, name, k))


@edit
def replace_by_what_was_computed(w: World, i: int, k: int) -> None:
    """`params["w"] = params["w"] * 0.5`, or `params["w"] *= 0.5`."""
    array, name = w.param(i), w.name(i)
    half = np.asarray(0.5).astype(array.dtype)
    if k % 3 == 0:
        w.put(name, np.asarray(array * half))
    elif k % 3 == 1 and array.flags.writeable:
        array *= half
        w.put(name, array)
    else:
        w.put(name, array.view() if k % 2 else array[...])


@edit
def replace_by_another_form(w: World, i: int, k: int) -> None:
    name = w.name(i)
    form = w.forms[name]
    choices = (
        lambda: w.values((*form.shape, 1), form.dtype),
        lambda: w.values(form.shape, one_of(k, (np.float32, np.float64, np.int32, ">f4"))),
        lambda: None,
        lambda: 0.5,
        lambda: np.ma.masked_array(w.values(form.shape, form.dtype)),
        lambda: np.broadcast_to(w.values((), form.dtype), form.shape),
    )
    w.put(name, choices[k % len(choices)]())


@edit
def exchange(w: World, i: int, k: int) -> None:
    one, other = w.name(i), w.name(i + 1 + k)
    entries = w.entries()
    if one not in entries or other not in entries:
        raise Nothing("one was removed")
    first, second = entries[one], entries[other]
    w.put(one, second)
    w.put(other, first if k % 3 else second)  # or one array under both names


@edit
def remove(w: World, i: int, k: int) -> None:
    name = w.name(i)
    held, key = w.place(name)
    if name not in w.entries():
        raise Nothing("it was removed before")
    if isinstance(held, list) and key != len(held) - 1:
        raise Nothing("the names of others would change")
    array = held.pop(key)
    if k % 2:
        w.put(name, array)


@edit
def replace_a_container(w: World, i: int, k: int) -> None:
    held = w.params["block"]
    if k % 3 == 0:
        w.params["block"] = list(held)
    elif k % 3 == 1:
        w.params["block"] = [copy.deepcopy(each) for each in held]
        w.rooms = {n: r for n, r in w.rooms.items() if not n.startswith("block")}
    else:
        w.params["block"] = w.params.pop("block")


@edit
def new_entry(w: World, i: int, k: int) -> None:
    """It is not stepped, and gradients do not name it."""
    w.params["of the user's own"] = one_of(k, (w.values((3,)), "text", None))
    if k % 2:
        del w.params["of the user's own"]


# -- states ----------------------------------------------------------------------------------------


@edit
def write_into_a_slot(w: World, i: int, k: int) -> None:
    if w.name(i) in w.bad_slots():
        raise Nothing("it is another")
    slot = w.slot(i, k)
    slot *= np.asarray(1.5 if k % 2 else 0.5).astype(slot.dtype)


@edit
def what_makes_a_slot_another(w: World, i: int, k: int) -> None:
    places = [p for p in w.kept if p[0] == w.name(i)]
    if not places or w.name(i) in w.bad_slots():
        raise Nothing("there is none, or it is another")
    array = w.kept[one_of(k, places)]
    was = array.dtype, array.shape, array.copy()
    try:
        one_of(i + k, SLOT_EDITS.values())(array)
    except CANNOT as error:
        raise Nothing("NumPy refuses it") from error
    w.undo_slot = array, was


@edit
def undo_a_slot(w: World, i: int, k: int) -> None:
    if w.undo_slot is None:
        raise Nothing("there is nothing to undo")
    array, (dtype, shape, values) = w.undo_slot
    w.undo_slot = None
    array.flags.writeable = True
    array.strides = (array.itemsize,) * array.ndim if array.ndim == 1 else array.strides
    array.dtype = dtype
    array.resize(shape, refcheck=False)
    array[...] = values


@edit
def save(w: World, i: int, k: int) -> None:
    found = w.state()
    if k % 2:
        found = pickle.loads(pickle.dumps(found))
    w.saved.append(found)


@edit
def load(w: World, i: int, k: int) -> None:
    """It goes on exactly from there."""
    if not w.saved or w.bad_slots():
        raise Nothing("no state was saved yet, or it cannot be written")
    state = w.saved[i % len(w.saved)]
    w.optimizer.load_state_dict(state)
    now = w.optimizer.state_dict()
    assert _plain(now) == _plain(state)
    assert now["iteration"] == state["iteration"]


@edit
def load_what_is_damaged(w: World, i: int, k: int) -> None:
    state = w.state()
    name = w.name(i)
    entry = state["parameters"][name]
    if k % 5 == 0:
        del state["parameters"][name]
    elif k % 5 == 1:
        state["parameters"]["unknown"] = entry
    elif k % 5 == 2:
        entry["step"] = -1
    elif k % 5 == 3:
        entry["slots"]["unknown"] = w.values((2,))
    else:
        state["rule"] = "Unknown"
    before = w.snapshot()
    with pytest.raises(StateError):
        w.optimizer.load_state_dict(state)
    assert w.snapshot() == before


@edit
def load_into_a_new_one(w: World, i: int, k: int) -> None:
    state = w.state()
    if w.bad():
        raise Nothing("no optimizer can be made")
    params = w.params if k % 2 else copy.deepcopy(w.params)
    params.pop("of the user's own", None)
    w.rooms = w.rooms if k % 2 else {}
    w.begin(params)
    w.optimizer.load_state_dict(state)


@edit
def copy_all(w: World, i: int, k: int) -> None:
    state = w.state()
    before = w.snapshot()
    try:
        if k % 2:
            params, optimizer = copy.deepcopy((w.params, w.optimizer))
        else:
            optimizer, params = copy.deepcopy((w.optimizer, w.params))
    except ParameterError:
        assert w.bad(written=False), "a copy was refused"
        assert w.snapshot() == before
        return
    assert not w.bad(written=False), "a copy was made"
    w.params, w.optimizer, w.rooms, w.undo_slot = params, optimizer, {}, None
    w.meet()
    assert _plain(w.state()) == _plain(state)


@edit
def pickle_the_optimizer(w: World, i: int, k: int) -> None:
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(w.optimizer)


# -- hyperparameters -------------------------------------------------------------------------------


def halved(step: int) -> float:
    return 0.25 / (1 + step)


@edit
def rate(w: World, i: int, k: int) -> None:
    value = one_of(i, (0.125, 0.0625, halved))
    known = [None, *(name for name in w.state()["groups"])]
    group = one_of(k, known)
    change: dict[str, Any] = {"lr": value} if k % 3 else {"lr_ratio": one_of(i, (0.5, 2.0, halved))}
    if k % 5 == 4:
        group, change = None, {"lr": value}
        w.optimizer.lr = value
    else:
        w.optimizer.set(group, **change)
    w.rates.append((group, change))


@edit
def other_hyperparameters(w: World, i: int, k: int) -> None:
    names = {
        "SGD": [("weight_decay", 0.25), ("momentum", 0.5)],
        "Adagrad": [("eps", 0.5), ("lr_decay", 0.25)],
        "RMSprop": [("alpha", 0.5), ("eps", 0.5)],
        "Adadelta": [("rho", 0.5), ("eps", 0.5)],
        "Adafactor": [("d", 2.0), ("weight_decay", 0.25)],
    }.get(w.options.rule, [("eps", 0.5), ("weight_decay", 0.25)])
    name, value = one_of(k, names)
    try:
        w.optimizer.set(None, **{name: value})
    except HyperparameterError as error:
        raise Nothing("it selects code") from error
    w.rates.append((None, {name: value}))


# -- averages --------------------------------------------------------------------------------------


@edit
def look_at_averages(w: World, i: int, k: int) -> None:
    """Nothing is changed by it, also where the user edits what is shown."""
    if "ema" not in w.options.arguments or w.bad() or w.bad_slots():
        raise Nothing("there is no average to look at")
    before = w.snapshot()
    try:
        with w.optimizer.averaged_params():
            if k % 3 == 1:
                w.param(i)[...] = 0.0
            elif k % 3 == 2:
                raise Nothing("the user's own exception")
    finally:
        assert w.snapshot() == before


@edit
def nothing(w: World, i: int, k: int) -> None:
    """Only the steps that follow."""


@edit
def look(w: World, i: int, k: int) -> None:
    """Reading changes nothing."""
    before = w.snapshot()
    repr(w.optimizer)
    w.optimizer.plan()
    assert w.optimizer.state_bytes >= 0
    assert w.snapshot() == before


def _plain(state: dict[str, Any]) -> Any:
    return {
        name: (entry["step"], {s: (a.dtype.name, a.tobytes()) for s, a in entry["slots"].items()})
        for name, entry in state["parameters"].items()
    }
