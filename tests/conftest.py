"""What holds for all tests."""

import os

# Kernels take the steps from the first on, however slow the machine is; test_behind.py says what
# else may happen.
os.environ.setdefault("ISOSTEP_COMPILE_WAIT", "inf")
