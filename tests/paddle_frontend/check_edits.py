"""The law of edits: the step after one is Paddle's, or is refused and changes nothing."""

from __future__ import annotations

from typing import Any

import paddle
import pytest

from .edits import EDITS, SLOTTED, Edit
from .twins import RULES
from .worlds import BOUNDS, OWN, REFUSALS, World, apart, attempt, make, same

CASES = [
    pytest.param(name, rule, grouped, id=f"{name}, {rule}{' with groups' * grouped}")
    for name, edit in EDITS.items()
    for rule in RULES
    for grouped in (False, True)
    if rule in edit.rules and edit.groups in (None, grouped)
]


@pytest.mark.parametrize(("name", "rule", "grouped"), CASES)
def test_the_step_after_an_edit(name: str, rule: str, grouped: bool) -> None:
    theirs, ours = make(rule, grouped)
    edit = EDITS[name]
    for world in (theirs, ours):
        world.step()
        world.step()
        edit.act(world, 0, 2)
    for _ in range(3):
        if edit.then == "refused":
            refused(ours)
        else:
            stepped(theirs, ours, edit)


@pytest.mark.parametrize("rule", ["Momentum", "AdamW"])
@pytest.mark.parametrize("name", [n for n, edit in EDITS.items() if edit.then == "own"])
def test_paddles_own_step_is_not_left_what_it_runs_over(name: str, rule: str) -> None:
    """Nor what it fails on in the middle of its loop."""
    for second, edit in EDITS.items():
        fits = all(rule in e.rules and e.groups in (None, False) for e in (edit, EDITS[name]))
        if fits and (edit.then == "refused" or second == "a_gradient_of_another_dtype"):
            _, ours = make(rule, False)
            ours.step()
            EDITS[name].act(ours, 0, 2)
            ours.step()
            assert ours.optimizer.ran == OWN
            if attempt(edit.act, ours, 0, 2) is None:  # or Paddle itself does not do it
                refused(ours)


@pytest.mark.parametrize("rule", ["SGD", "AdamW"])
@pytest.mark.parametrize("name", ["nothing", *[n for n, e in EDITS.items() if e.then == "own"]])
def test_minimize_steps_groups_as_step_does(name: str, rule: str) -> None:
    """Paddle's own `minimize` fails on them."""
    edit = EDITS[name]
    if rule not in edit.rules or edit.groups is False:
        return
    theirs, ours = make(rule, True)
    for world in (theirs, ours):
        world.step()
        edit.act(world, 0, 2)
    theirs.step()
    ours.step(lambda world: world.optimizer.minimize(paddle.to_tensor(1.0)))
    assert (ours.optimizer.ran == OWN) == (edit.then == "own")
    assert apart(theirs.snapshot(), ours.snapshot()) < BOUNDS[ours.dtype]


@pytest.mark.parametrize("rule", SLOTTED)
def test_a_state_has_its_keys_whichever_tensors_are_in_it(rule: str) -> None:
    """Paddle's keys are the names of tensors, and those of copies are nothing that is found."""
    _, ours = make(rule, False)
    ours.step()
    keys = list(ours.optimizer.state_dict())
    EDITS["all_slots_are_copied"].act(ours, 0, 0)
    assert list(ours.optimizer.state_dict()) == keys
    before = ours.snapshot()
    EDITS["a_new_optimizer_with_its_state"].act(ours, 0, 0)
    assert same(before, ours.snapshot())


def refused(ours: World) -> None:
    """No bit is changed, and the message says so."""
    before = ours.snapshot()
    error = attempt(ours.step)
    assert isinstance(error, REFUSALS), repr(error)
    assert "'" in str(error)  # it names the parameter
    assert same(before, ours.snapshot())


def stepped(theirs: World, ours: World, edit: Edit) -> None:
    """The numbers are Paddle's. Where its own class fails, that is what isostep leaves to it."""
    error, own = attempt(theirs.step), attempt(ours.step)
    if error is not None:
        assert edit.then == "own"
        assert type(own) is type(error)
        return
    assert own is None, own
    assert apart(theirs.snapshot(), ours.snapshot()) < BOUNDS[ours.dtype]
    ran: Any = ours.optimizer.ran
    assert ran == OWN if edit.then == "own" else all(k.startswith("native") for k in ran), ran
