"""The stateful test of isostep.torch, in a process of its own."""

from ...fuzzing import main
from .edits import EDITS
from .pair import CLASSES, NUMBERS, OPTIONS, Pair
from .world import DTYPES

FIRST = (len(CLASSES) + 1, len(OPTIONS), len(DTYPES), 13, 8)

if __name__ == "__main__":
    main(Pair, FIRST, EDITS, NUMBERS)
