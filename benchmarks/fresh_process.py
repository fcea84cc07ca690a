"""The first step of an optimizer of isostep.torch in this process, and those that follow.

`python -P benchmarks/fresh_process.py` takes one JSON object on stdin and prints one. It stands by
itself, so that `PYTHONPATH` says which checkout's isostep is measured, an older one too.
"""

import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path

COMPILING = 120.0
"""Seconds that a compilation may go on after the first step."""


def cpu_seconds() -> float:
    """The processor's seconds that this process and its children have taken."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def main(
    rule: str, shapes: list[list[int]], threads: int, seconds: float, steps: int
) -> dict[str, float | int | str]:
    """Measure one process.

    Args:
        rule: a class of isostep.torch.
        shapes: of the parameters.
        threads: that torch may use.
        seconds, steps: how long, and how often at most, is stepped after the first step.

    Returns:
        Seconds: `wall` and `cpu` of importing isostep, making the optimizer and its first step;
        `ready` until a step was native as a whole, `cpu` up to there; `steady` of the median step.
        `kernels`: how many are in the cache.
    """
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape) * 0.02) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param) * 0.01
    one = torch.nn.Parameter(torch.ones(1))
    one.grad = torch.ones(1)
    torch.optim.AdamW([one]).step()  # imports what torch's own optimizers need

    before, start = cpu_seconds(), time.perf_counter()
    import isostep.torch

    optimizer = getattr(isostep.torch, rule)(params)
    optimizer.step()
    wall = time.perf_counter() - start
    while any("array" in ran for ran in optimizer.ran):
        if time.perf_counter() - start > COMPILING:
            raise TimeoutError(f"kernels of {rule} are not there after {COMPILING:.0f} s")
        optimizer.step()
    ready, cpu = time.perf_counter() - start, cpu_seconds() - before

    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < 3 or (len(taken) < steps and time.perf_counter() < end):
        begin = time.perf_counter()
        optimizer.step()
        taken.append(time.perf_counter() - begin)
    kernels = len(list(Path(os.environ["ISOSTEP_CACHE_DIR"]).rglob("*.kernel")))
    return {
        "isostep": str(Path(isostep.__file__).parent.parent),
        "kernels": kernels,
        "wall": wall,
        "ready": ready,
        "cpu": cpu,
        "steady": statistics.median(taken),
    }


if __name__ == "__main__":
    print(json.dumps(main(**json.load(sys.stdin))))
