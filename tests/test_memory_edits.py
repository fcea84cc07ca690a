"""What NumPy lets users do to arrays in place, between two steps.

Every edit is either followed, with the numbers of an optimizer whose array was never edited in this
way, or refused by name, with no bit changed; once it is undone, steps go on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import isostep
from isostep import GradientError, ParameterError, StateError
from isostep.engines import headers

from .numpy_frontend.edits import FOLLOWED, REFUSED, SHAPE, SLOT_EDITS, start
from .table import AnyArray, assert_same_bits, copied, state_of

ENGINES = ("native", "array")
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "elements": ("AdamW", {"lr": 0.1}),
    "factors": ("Adafactor", {"lr": 0.1, "min_dim_to_factor": 1}),
    "everything": (
        "AdamW",
        {"lr": 0.1, "ema": 0.9, "clip": isostep.Clip(norm=1.0), "master_weights": True},
    ),
}
FEW, MANY = 1, 40  # arrays beside the one that is edited


def gradient(step: int, shape: tuple[int, ...] = SHAPE) -> AnyArray:
    return np.random.default_rng([step, 9]).normal(size=shape).astype(np.float32)


@pytest.fixture(params=["kernel", "python"])
def looks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers are read by machine code, or asked for where that cannot be."""
    if request.param == "python":
        monkeypatch.setattr(headers, "usable", lambda: False)


def made(rule: str, engine: str, others: int, w: AnyArray) -> tuple[Any, dict[str, AnyArray]]:
    name, options = RULES[rule]
    params = {"w": w} | {f"p{k}": np.ones(3, np.float32) for k in range(others)}
    return isostep.Optimizer(name, params, engine=engine, **options), params


def grads_of(params: dict[str, AnyArray], step: int) -> dict[str, Any]:
    return {n: gradient(step) if n == "w" else np.ones(3, np.float32) for n in params}


@pytest.mark.usefixtures("looks")
@pytest.mark.parametrize("others", [FEW, MANY])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("edit", FOLLOWED)
def test_what_leaves_an_array_what_it_is_is_followed(
    edit: str, rule: str, engine: str, others: int
) -> None:
    act, effect = FOLLOWED[edit]
    w, plain = start(), start()
    edited, params = made(rule, engine, others, w)
    right, twins = made(rule, engine, others, plain)
    slots = edited.slots("w")
    for step in range(6):
        for optimizer, arrays in ((edited, params), (right, twins)):
            optimizer.step(grads_of(arrays, step))
        assert_same_bits(state_of(edited, params), state_of(right, twins))
        if step % 2:
            act(w)
            effect(plain)
    for slot, view in edited.slots("w").items():
        assert np.shares_memory(view, slots[slot])  # what was handed out is still live
    if others == FEW:
        assert all(ran.startswith(engine) for ran in edited.ran)


@pytest.mark.usefixtures("looks")
@pytest.mark.parametrize("others", [FEW, MANY])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("edit", REFUSED)
def test_what_makes_an_array_another_is_refused_by_name_and_changes_nothing(
    edit: str, rule: str, engine: str, others: int
) -> None:
    act, undo = REFUSED[edit]
    w = start()
    optimizer, params = made(rule, engine, others, w)
    optimizer.step(grads_of(params, 0))
    act(w)
    before, state = copied(params), optimizer.state_dict()
    uses = [
        lambda: optimizer.step(grads_of(params, 1)),
        lambda: optimizer.step(grads_of(params, 1)),
    ]
    if "ema" in RULES[rule][1]:
        uses.append(lambda: optimizer.averaged_params().__enter__())
    if edit != "locked":  # what is locked can be copied
        uses.append(lambda: copy.deepcopy(optimizer))
    for use in uses:
        with pytest.raises(ParameterError, match=r"parameter 'w' was|'w' was made to overlap"):
            use()
    assert_same_bits(params, before)
    assert repr(optimizer.state_dict()) == repr(state)
    optimizer.load_state_dict(state)  # which is no matter of the parameters
    if "ema" not in RULES[rule][1]:  # else it is averaged with the others
        optimizer.step(dict.fromkeys(params) | {"p0": np.ones(3, np.float32)})
        assert np.array_equal(params["w"], before["w"], equal_nan=True)
        assert (params["p0"] != before["p0"]).all()
    undo(w)
    optimizer.step(grads_of(params, 1))
    assert (w != start()).any()


@pytest.mark.usefixtures("looks")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("edit", SLOT_EDITS)
def test_a_slot_that_was_made_another_is_refused_by_name(edit: str, engine: str) -> None:
    w = start()
    optimizer, params = made("everything", engine, FEW, w)
    optimizer.step(grads_of(params, 0))
    state = optimizer.state_dict()
    owner = optimizer.slots("w")["exp_avg_sq"].base
    SLOT_EDITS[edit](owner)
    before = w.copy()
    for use in (
        lambda: optimizer.step(grads_of(params, 1)),
        lambda: optimizer.slots("w"),
        optimizer.state_dict,
        lambda: optimizer.load_state_dict(state),
        lambda: optimizer.averaged_params().__enter__(),
        lambda: copy.deepcopy(optimizer),
    ):
        with pytest.raises(StateError, match=r"exp_avg_sq of 'w' is kept as .* and was made"):
            use()
    assert np.array_equal(w, before)
    assert optimizer.iteration == 1
    optimizer.slots("p0")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_slot_that_lies_elsewhere_is_followed(engine: str) -> None:
    w, plain = start(), start()
    optimizer, params = made("elements", engine, FEW, w)
    right, twins = made("elements", engine, FEW, plain)
    for step in range(4):
        optimizer.step(grads_of(params, step))
        right.step(grads_of(twins, step))
        owner = optimizer.slots("w")["exp_avg"].base
        kept = owner.copy()
        owner.resize(1 << 20, refcheck=False)
        owner.resize(36, refcheck=False)
        owner[...] = kept
    assert_same_bits(state_of(optimizer, params), state_of(right, twins))


# -- views of memory that others own ---------------------------------------------------------------


def through_a_slice(room: AnyArray) -> AnyArray:
    return room[2:8]


def through_a_memoryview(room: AnyArray) -> AnyArray:
    return np.frombuffer(memoryview(room), np.float32).reshape(room.shape)[2:8]


def through_strides(room: AnyArray) -> AnyArray:
    shape, strides = (6, 6), room.strides
    return np.lib.stride_tricks.as_strided(room[2:], shape, strides, writeable=True)


def through_two(room: AnyArray) -> AnyArray:
    return room.view(np.matrix)[2:8].view(np.ndarray)


VIEWS = [through_a_slice, through_a_memoryview, through_strides, through_two]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_of_an_array_that_was_resized_is_refused(
    view: Callable[[AnyArray], AnyArray], engine: str
) -> None:
    """Its own header is as it was, at the same address: the memory behind it is gone."""
    for size in ((3, 6), (1 << 16, 6)):
        room = np.ones((10, 6), np.float32)
        w = view(room)
        assert np.shares_memory(w, room)
        optimizer, params = made("elements", engine, FEW, w)
        optimizer.step(grads_of(params, 0))
        room.resize(size, refcheck=False)
        if room.ctypes.data <= w.ctypes.data < room.ctypes.data + room.nbytes and size[0] > 10:
            continue  # it has grown where it lay
        with pytest.raises(ParameterError, match="'w' is a view of an array that was resized"):
            optimizer.step(grads_of(params, 1))
        assert optimizer.iteration == 1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("others", [FEW, MANY])
@pytest.mark.parametrize("view", VIEWS)
def test_a_gradient_whose_memory_is_gone_is_refused(
    view: Callable[[AnyArray], AnyArray], others: int, engine: str
) -> None:
    optimizer, params = made("elements", engine, others, start())
    room = np.ones((10, 6), np.float32)
    g = view(room)
    optimizer.step(grads_of(params, 0) | {"w": g})
    room.resize((3, 6), refcheck=False)
    before = copied(params)
    with pytest.raises(GradientError, match="'w' is a view of an array that was resized"):
        optimizer.step(grads_of(params, 1) | {"w": g})
    assert_same_bits(params, before)


@pytest.mark.parametrize("engine", ENGINES)
def test_parameters_that_come_to_share_memory_are_refused(engine: str) -> None:
    room = np.ones((8, 6), np.float32)
    params = {"a": room[:4], "b": room[4:]}
    optimizer = isostep.AdamW(params, engine=engine)
    grads = {n: np.ones((4, 6), np.float32) for n in params}
    optimizer.step(grads)
    params["a"].strides = (48, 4)
    before = room.copy()
    with pytest.raises(ParameterError, match="'a' and 'b' were made to share memory"):
        optimizer.step(grads)
    assert np.array_equal(room, before)
    params["a"].strides = (24, 4)
    optimizer.step(grads)
    assert optimizer.iteration == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_a_gradient_may_lie_in_any_memory_that_the_step_writes(engine: str) -> None:
    """In a slot, say, shifted by one: it is read as it was before the step."""
    for rule, slot in (("AdamW", "exp_avg"), ("SGD", "momentum_buffer")):
        found: list[AnyArray] = []
        for copies in (False, True):
            w = np.random.default_rng(0).normal(size=2000)
            options = {"momentum": 0.9} if rule == "SGD" else {}
            optimizer = isostep.Optimizer(rule, {"w": w[1:]}, engine=engine, lr=0.1, **options)
            optimizer.step({"w": np.random.default_rng(1).normal(size=1999)})
            kept = optimizer.slots("w")[slot]
            g = np.lib.stride_tricks.as_strided(kept.base, (1999,))
            for given in (g, w[:-1], kept[::-1]):
                optimizer.step({"w": given.copy() if copies else given})
            found.append(w)
        assert np.array_equal(*found)


# -- classes of arrays -----------------------------------------------------------------------------


class Quantity(np.ndarray):
    def __array_ufunc__(self, *arguments: Any, **options: Any) -> Any:
        return NotImplemented


class Logged(np.ndarray):
    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "make",
    [
        lambda a: np.ma.masked_array(a, a > 0),
        lambda a: a.view(Quantity),
        lambda a: a.view(Logged),
    ],
)
def test_arrays_whose_class_has_a_say_in_their_elements_are_refused(
    make: Callable[[AnyArray], AnyArray], engine: str
) -> None:
    with pytest.raises(ParameterError, match=r"parameter 'w' is a \w+, whose class has a say"):
        isostep.SGD({"w": make(start())}, engine=engine)
    w = start()
    for others in (FEW, MANY):
        optimizer, params = made("elements", engine, others, w)
        before = copied(params)
        with pytest.raises(GradientError, match=r"gradient of 'w' is a \w+, whose class has a say"):
            optimizer.step(grads_of(params, 0) | {"w": make(gradient(0))})
        assert_same_bits(params, before)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rule", RULES)
def test_other_classes_of_arrays_are_stepped_as_arrays(rule: str, engine: str, tmp_path: Any):
    arrays: list[AnyArray] = [start(), start().view(np.matrix)]
    arrays.append(np.memmap(tmp_path / "w", np.float32, "w+", shape=SHAPE))
    odd = np.zeros(6 * 6 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(SHAPE)
    assert not odd.flags.aligned
    arrays.append(odd)
    arrays.append(np.zeros(SHAPE, [("tag", "u1"), ("w", "f4")])["w"])
    for w in arrays[2:]:
        w[...] = start()
    for step in range(3):
        for w in arrays:
            optimizer, params = made(rule, engine, FEW, w)
            for given in (
                gradient(step),
                gradient(step).view(np.matrix),
                _unaligned(gradient(step)),
            ):
                optimizer.step(grads_of(params, 0) | {"w": given})
            assert np.array_equal(np.asarray(w), arrays[0])


def _unaligned(array: AnyArray) -> AnyArray:
    room = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    room[...] = array
    return room


def test_a_memory_map_is_written_through_and_one_that_was_locked_is_not(tmp_path: Any) -> None:
    w = np.memmap(tmp_path / "w", np.float32, "w+", shape=SHAPE)
    optimizer = isostep.SGD({"w": w}, lr=1.0)
    optimizer.step({"w": np.ones(SHAPE, np.float32)})
    w.flush()
    assert (np.fromfile(tmp_path / "w", np.float32) == -1.0).all()
    w.flags.writeable = False
    with pytest.raises(ParameterError, match="'w' was made read-only"):
        optimizer.step({"w": np.ones(SHAPE, np.float32)})
    with pytest.raises(ParameterError, match="read-only"):
        isostep.SGD({"w": np.memmap(tmp_path / "w", np.float32, "r", shape=SHAPE)})


# -- averages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_inside_averaged_params_is_refused(engine: str) -> None:
    """The parameters are put back after it: a step would be lost."""
    w = start()
    optimizer, params = made("everything", engine, FEW, w)
    for step in range(2):  # the average starts where the first step ends
        optimizer.step(grads_of(params, step))
    before = copied(state_of(optimizer, params))
    with optimizer.averaged_params(), optimizer.averaged_params():
        with pytest.raises(ParameterError, match=r"step\(\) inside averaged_params\(\)"):
            optimizer.step(grads_of(params, 1))
        assert (w != before["w"]).any()
    assert_same_bits(state_of(optimizer, params), before)
    optimizer.step(grads_of(params, 1))


def test_contexts_of_averages_that_are_left_in_any_order_put_the_parameters_back() -> None:
    w = start()
    optimizer, params = made("everything", "native", FEW, w)
    for step in range(2):  # the average starts where the first step ends
        optimizer.step(grads_of(params, step))
    before = w.copy()
    first, second = optimizer.averaged_params(), optimizer.averaged_params()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert (w != before).any()
    second.__exit__(None, None, None)
    assert np.array_equal(w, before)


@pytest.mark.parametrize("edit", ["locked", "reshaped", "shrunk"])
def test_what_cannot_be_put_back_is_named_and_the_others_are(edit: str) -> None:
    w = start()
    optimizer, params = made("everything", "native", FEW, w)
    for step in range(2):  # the average starts where the first step ends
        optimizer.step(grads_of(params, step))
    before = copied(params)
    with pytest.raises(ParameterError, match="'w' was"), optimizer.averaged_params():  # noqa: PT012
        assert (params["p0"] != before["p0"]).all()
        REFUSED[edit][0](w)
    assert np.array_equal(params["p0"], before["p0"])
