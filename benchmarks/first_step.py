"""A fresh process up to the end of its first AdamW step; prints milliseconds as JSON.

`import` is what `import isostep` takes where NumPy is already imported; `first_step` is from just
before the front-end's import to the end of the first step.
"""

import json
import sys
import time

import numpy as np

from benchmarks import models


def main() -> None:
    """Print `{"import": ..., "first_step": ..., "numba": ...}`."""
    model = models.get("tiny")
    params = {str(k): a for k, a in enumerate(model.arrays(0.02, seed=0))}
    grads = {str(k): a for k, a in enumerate(model.arrays(0.01, seed=1))}
    start = time.perf_counter()
    import isostep

    imported = time.perf_counter()
    isostep.AdamW(params).step(grads)
    end = time.perf_counter()
    found = {"import": imported - start, "first_step": end - start}
    print(json.dumps({k: v * 1e3 for k, v in found.items()} | {"numba": "numba" in sys.modules}))
    assert np.isfinite(params["0"]).all()


if __name__ == "__main__":
    main()
