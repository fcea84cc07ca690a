"""The stateful test of isostep.keras on torch, in a process of its own."""

import os

os.environ["KERAS_BACKEND"] = "torch"

from ...fuzzing import main
from .edits import EDITS
from .pair import FIRST, NUMBERS, Pair

if __name__ == "__main__":
    main(Pair, FIRST, EDITS, NUMBERS)
