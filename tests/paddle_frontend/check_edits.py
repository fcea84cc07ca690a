"""The law of edits: the step after one is Paddle's, or is refused and changes nothing."""

from __future__ import annotations

from typing import Any

import pytest

from .edits import EDITS, Edit
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


def refused(ours: World) -> None:
    """No bit is changed, and the message says so."""
    before = ours.snapshot()
    error = attempt(ours)
    assert isinstance(error, REFUSALS), repr(error)
    assert "'" in str(error)  # it names the parameter
    assert same(before, ours.snapshot())


def stepped(theirs: World, ours: World, edit: Edit) -> None:
    """The numbers are Paddle's. Where its own class fails, that is what isostep leaves to it."""
    error, own = attempt(theirs), attempt(ours)
    if error is not None:
        assert edit.then == "own"
        assert type(own) is type(error)
        return
    assert own is None, own
    assert apart(theirs.snapshot(), ours.snapshot()) < BOUNDS[ours.dtype]
    ran: Any = ours.optimizer.ran
    assert ran == OWN if edit.then == "own" else all(k.startswith("native") for k in ran), ran
