"""The threads of Paddle: kernels run on them, as many as its OpenMP runtime is set to.

Beside Paddle's own threads, which spin on after a backward pass, others would have to wait.
"""

from __future__ import annotations

from pathlib import Path

import paddle

from isostep.engines import openmp
from isostep.engines.threads import Crew

_RUNTIME = openmp.runtime_in(Path(paddle.__file__).parent / "libs")
CREW = Crew(
    _RUNTIME,
    None if _RUNTIME is None else openmp.setting(_RUNTIME),
    "Paddle's OpenMP runtime, which importing Paddle sets to 1 where OMP_NUM_THREADS is not set",
)
