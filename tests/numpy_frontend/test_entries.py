"""`params["w"] = other`: what stands under a name is what is stepped."""

from __future__ import annotations

import copy
from collections import OrderedDict, UserDict
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

import isostep
from isostep import GradientError, ParameterError
from isostep.engines import objects

from ..table import AnyArray, assert_same_bits, state_of

ENGINES = ("native", "array")
OTHER = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(3, 4)
G = {"a": np.full((3, 4), 0.5, np.float32), "b": np.ones(5), "c": np.ones((3, 4), np.float32)}


class Views(UserDict[str, Any]):
    """A mapping that makes a new view whenever it is asked."""

    def __getitem__(self, key: str) -> AnyArray:
        return super().__getitem__(key).view()


CONTAINERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a dict": dict,
    "an ordered dict": OrderedDict,
    "a user's dict": UserDict,
    "a mapping of views": Views,
}


def arrays() -> dict[str, Any]:
    return {"a": np.ones((3, 4), np.float32), "b": np.ones(5), "c": np.zeros((3, 4), np.float32)}


@pytest.fixture(params=["machine code", "python"])
def looks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Edits of dicts are counted, or where Python does not count them, contents compared."""
    if request.param == "python":
        monkeypatch.setattr(objects, "layout", lambda: None)


@pytest.mark.usefixtures("looks")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("rule", ["AdamW", "Adafactor", "SGD"])
def test_an_entry_that_was_replaced_goes_on_with_the_state_of_its_name(
    rule: str, container: str, engine: str
) -> None:
    params, plain = CONTAINERS[container](arrays()), arrays()
    options = {"momentum": 0.5} if rule == "SGD" else {"ema": 0.5, "clip": isostep.Clip(norm=1.0)}
    edited = isostep.Optimizer(rule, params, lr=0.1, engine=engine, **options)
    right = isostep.Optimizer(rule, plain, lr=0.1, engine=engine, **options)
    first = params["a"]
    for step in range(6):
        edited.step(G)
        right.step(G)
        assert_same_bits(state_of(edited, dict(params)), state_of(right, plain))
        if step == 1:
            left = np.array(first)
            params["a"] = OTHER.copy()
            plain["a"][...] = OTHER
        elif step == 2:
            params["a"] = np.asfortranarray(params["a"])  # other strides
        elif step == 3:
            params["a"], params["c"] = np.array(params["c"]), np.array(params["a"])
            plain["a"][...], plain["c"][...] = plain["c"].copy(), plain["a"].copy()
    assert np.array_equal(first, left)  # nothing is written to what was taken out
    assert all(ran.startswith(engine) for ran in edited.ran)


@pytest.mark.usefixtures("looks")
@pytest.mark.parametrize("engine", ENGINES)
def test_entries_of_nested_containers_are_followed(engine: str) -> None:
    layers: list[Any] = [{"w": np.ones(3)}, (np.ones(2), [np.ones(4)])]
    optimizer = isostep.SGD({"layers": layers}, lr=1.0, engine=engine)
    grads = {"layers": [{"w": np.ones(3)}, (np.ones(2), [np.ones(4)])]}
    optimizer.step(grads)
    layers[0]["w"], layers[1][1][0] = np.full(3, 5.0), np.full(4, 7.0)
    optimizer.step(grads)
    assert (layers[0]["w"] == 4.0).all()
    assert (layers[1][0] == -1.0).all()
    assert (layers[1][1][0] == 6.0).all()
    layers[0] = {"w": np.full(3, 2.0)}
    optimizer.step(grads)
    assert (layers[0]["w"] == 1.0).all()


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "removed": (lambda p: p.pop("a"), "'a' was removed from the params"),
    "another shape": (lambda p: p.update(a=np.ones((4, 3), np.float32)), r"float32 \(4, 3\)"),
    "another dtype": (lambda p: p.update(a=np.ones((3, 4))), r"replaced by float64 \(3, 4\)"),
    "no array": (lambda p: p.update(a=[1.0]), "removed"),
    "a number": (lambda p: p.update(a=1.0), "replaced by a float"),
    "masked": (lambda p: p.update(a=np.ma.masked_array(OTHER)), "replaced by a MaskedArray"),
    "byte order": (lambda p: p.update(a=OTHER.astype(">f4")), r"replaced by >f4 \(3, 4\)"),
    "broadcast": (lambda p: p.update(a=np.broadcast_to(OTHER[:1], (3, 4))), "read-only|overlap"),
    "twice": (lambda p: p.update(a=p["c"]), "'a' and 'c' were made to share memory"),
}


@pytest.mark.usefixtures("looks")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("edit", REFUSED)
def test_an_entry_that_cannot_be_stepped_is_refused_by_name_and_changes_nothing(
    edit: str, engine: str
) -> None:
    act, told = REFUSED[edit]
    params = arrays()
    optimizer = isostep.AdamW(params, engine=engine)
    optimizer.step(G)
    first, state = params["a"], repr(optimizer.state_dict())
    act(params)
    before = copy.deepcopy(params)
    for _ in range(2):
        with pytest.raises(ParameterError, match=told):
            optimizer.step(G)
    assert repr(params) == repr(before)
    assert repr(optimizer.state_dict()) == state
    optimizer.step({"a": None, "b": G["b"], "c": None})  # which has nothing to do with it
    params["a"] = first
    optimizer.step(G)
    assert optimizer.iteration == 3


def test_what_was_refused_and_is_made_right_in_place_is_stepped() -> None:
    params = arrays()
    optimizer = isostep.SGD(params, lr=1.0)
    params["a"] = other = np.zeros(12, np.float32)
    with pytest.raises(ParameterError, match=r"replaced by float32 \(12,\)"):
        optimizer.step(G)
    other.shape = (3, 4)
    optimizer.step(G)
    assert (other == -0.5).all()


def test_a_new_entry_is_not_stepped_and_its_gradient_is_refused() -> None:
    params = arrays()
    optimizer = isostep.SGD(params)
    params["new"] = new = np.ones(2)
    optimizer.step(G)
    with pytest.raises(GradientError, match="'new': it was put into the params after"):
        optimizer.step({**G, "new": np.ones(2)})
    assert (new == 1.0).all()


@pytest.mark.parametrize("make", [dict, UserDict, MappingProxyType])
def test_a_copy_goes_by_the_copied_containers(make: Callable[[dict[str, Any]], Any]) -> None:
    held = arrays()
    params = make(held)
    optimizer = isostep.SGD(params, lr=1.0)
    if make is MappingProxyType:  # which cannot be copied
        copy.deepcopy(optimizer).step(G)
    else:
        copied, twin = copy.deepcopy((params, optimizer))
        copied["a"] = np.zeros((3, 4), np.float32)
        twin.step(G)
        assert (copied["a"] == -0.5).all()
    assert (held["a"] == 1.0).all()


def test_a_mapping_that_makes_views_is_not_looked_through_anew_in_each_step() -> None:
    optimizer = isostep.SGD(Views(arrays()), lr=1.0)
    optimizer.step(G)
    ran = optimizer._stepper.last[0]
    optimizer.step(G)
    assert optimizer._stepper.last[0] is ran
