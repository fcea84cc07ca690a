"""The stateful test of the NumPy front-end, in a process of its own."""

from ...fuzzing import main
from .edits import EDITS
from .pair import FIRST, NUMBERS, Pair

if __name__ == "__main__":
    main(Pair, FIRST, EDITS, NUMBERS)
