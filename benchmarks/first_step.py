"""A fresh process up to the end of its first AdamW step; prints milliseconds as JSON.

NumPy is already imported. `import` is what `import isostep` takes, `front_end` what its class for
NumPy takes besides; `first_step` is from before both to the end of the first step.
"""

import json
import sys
import time

import numpy as np

from benchmarks import models


def main() -> None:
    """Print `{"import": ..., "front_end": ..., "first_step": ..., "numba": ...}`."""
    model = models.get("tiny")
    params = {str(k): a for k, a in enumerate(model.arrays(0.02, seed=0))}
    grads = {str(k): a for k, a in enumerate(model.arrays(0.01, seed=1))}
    start = time.perf_counter()
    import isostep

    imported = time.perf_counter()
    make = isostep.AdamW
    loaded = time.perf_counter()
    make(params).step(grads)
    end = time.perf_counter()
    found = {"import": imported - start, "front_end": loaded - imported, "first_step": end - start}
    print(json.dumps({k: v * 1e3 for k, v in found.items()} | {"numba": "numba" in sys.modules}))
    assert np.isfinite(params["0"]).all()


if __name__ == "__main__":
    main()
