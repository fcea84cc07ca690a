"""The stateful test of isostep.paddle, in a process of its own."""

from __future__ import annotations

from ...fuzzing import main
from ..edits import EDITS
from .pair import FIRST, NUMBERS, Pair

if __name__ == "__main__":
    main(Pair, FIRST, EDITS, NUMBERS)
