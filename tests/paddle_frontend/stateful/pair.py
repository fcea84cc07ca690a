"""Paddle's world and isostep's, which get the same edits and must stay alike.

After each step isostep's numbers are held against those of Paddle's own class from the same start;
then Paddle's world takes isostep's values over, so that differences do not add up. isostep steps
first: what it refuses may end the process in Paddle's kernels.

What a step may be follows from the table of edits: kernels run as long as only edits have been done
after which they do, and nothing is refused before an edit after which it may be.
"""

from __future__ import annotations

from typing import Any

from ...fuzzing import Line
from ..edits import EDITS
from ..twins import RULES
from ..worlds import BOUNDS, OWN, REFUSALS, apart, attempt, make, same, whole
from .steps import STEPS, Stop, some, struck

ENGINES = {"native": "native", "array": "array code"}
"""What `ran` begins with, by the engine."""
FIRST = (len(RULES), 2, len(BOUNDS), 2 * len(ENGINES))
"""How many values the numbers of the first line have: the rule, whether there are groups, the
dtype, and the engine."""
NUMBERS = len(STEPS)
PADDLES_OWN = {
    "is not registered": "Paddle has no kernel, as to clip by norms in float64",
    "must be the same Tensor": "Paddle's RMSProp takes no strided parameters",
    "should in state dict": "Paddle finds a state by numbers that it counts on, or not at all",
    "Tensor holds no memory": "Paddle decays what it then passes over, for want of memory",
    "does not match the type of data": "Paddle has one learning rate, of one dtype",
}
"""What Paddle fails with, and why, where isostep may step; or where a step is left to Paddle, and
Paddle's world has been helped."""
OF_DTYPE = "which Paddle's own step does not take"
"""What isostep says of a gradient that only kernels take."""
WRITE_ANEW = (
    "memory_is_set",
    "memory_is_given_up",
    "memory_is_given_up_and_set",
    "memory_is_that_of_a_new_tensor",
    "a_new_tensor_takes_its_place",
    "made_smaller",
)
"""Edits that read no value of a parameter."""


class Pair:
    """Two worlds.

    Args:
        line: says which.
    """

    def __init__(self, line: Line) -> None:
        rule, grouped, dtype, engine = line.numbers
        self._rule, self._engine = list(RULES)[rule], "array" if engine == 3 else "native"
        self._dtype = list(BOUNDS)[dtype]
        self._done: set[str] = set()
        """What the steps after the edits so far may be."""
        self.theirs, self.ours = make(self._rule, bool(grouped), self._dtype, engine=self._engine)

    def do(self, line: Line) -> None:
        """An edit, or a step."""
        if line.what == "step":
            self._step(*line.numbers)
        else:
            self._edit(line.what, *line.numbers)
        self.theirs.follow(self.ours)

    # -- edits -----------------------------------------------------------------------------------

    def _edit(self, name: str, i: int, k: int) -> None:
        edit = EDITS[name]
        if self._rule not in edit.rules or edit.groups not in (None, self.ours.grouped):
            return
        if name not in WRITE_ANEW and any(map(_short, self.ours.params)):
            return  # Paddle's own operations run over it
        before = self.ours.snapshot()
        error = attempt(edit.act, self.ours, i, k)
        if isinstance(error, REFUSALS):
            self._refused(error, before)
            return
        theirs = attempt(edit.act, self.theirs, i, k)
        assert type(theirs) is type(error), (theirs, error)
        self._done.add(edit.then)  # what raises may have done a part

    # -- steps -----------------------------------------------------------------------------------

    def _step(self, i: int, k: int) -> None:
        how, act = some(k, i)
        before = self.ours.snapshot()
        error = attempt(self.ours.step, act)
        if isinstance(error, REFUSALS):
            self._refused(error, before)
        elif isinstance(error, Stop):
            assert same(before, self.ours.snapshot())
        elif how is not struck or not same(before, self.ours.snapshot()):
            self._stepped(error, attempt(self.theirs.step, act), before)

    def _stepped(
        self, error: BaseException | None, theirs: BaseException | None, before: dict[str, Any]
    ) -> None:
        failed = (theirs, error) if self.ours.optimizer.ran == OWN else (theirs,)
        known = any(text in str(each) for text in PADDLES_OWN for each in failed)
        assert known or type(error) is type(theirs), (error, theirs)
        if error is theirs is None:
            assert apart(self.theirs.snapshot(), self.ours.snapshot()) < BOUNDS[self._dtype]
        elif error is not None and self.ours.optimizer.ran != OWN:
            assert same(before, self.ours.snapshot())
        if self._done <= {"native"}:
            ran = self.ours.optimizer.ran
            assert all(kernel.startswith(ENGINES[self._engine]) for kernel in ran), ran

    def _refused(self, error: BaseException, before: dict[str, Any]) -> None:
        may = {"refused"} if self._engine == "native" else {"refused", "own"}  # an option refuses
        short = any(map(_short, self.ours.tensors()))
        assert self._done & may or short or OF_DTYPE in str(error), error
        assert same(before, self.ours.snapshot()), error


def _short(tensor: Any) -> bool:
    """Whether a tensor has less memory than it needs, as strided ones do that are given another's:
    Paddle leaves them their strides."""
    return tensor._is_initialized() and not whole(tensor)
