"""The figures that isostep promises, each beside what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.cases import CASES
from benchmarks.cold import COLUMNS
from benchmarks.load import LOADS
from benchmarks.own import NAME
from benchmarks.peers import FRONT_ENDS, LABELS, OTHER_FORMS
from benchmarks.results import Results


@dataclass(frozen=True)
class Target:
    """A promise.

    Args:
        what: in words.
        bound: the figure.
        at_least: whether the figure is a lower bound, else an upper one.
        unit: what the figure is in.
        read: finds the measured value; None if it was not measured.
    """

    what: str
    bound: float
    at_least: bool
    unit: str
    read: Callable[[Results], float | None]


@dataclass(frozen=True)
class Verdict:
    """A promise and what came of it; `met` is None if it was not measured."""

    what: str
    bound: float
    at_least: bool
    unit: str
    measured: float | None
    met: bool | None


_SPEED = (
    ("AdamW", "gpt2", 1.05),
    ("AdamW", "tiny", 5.0),
    ("clip+AdamW+EMA", "gpt2", 1.6),
    ("clip+AdamW+EMA", "tiny", 7.0),
    ("RMSprop", "gpt2", 4.0),
    ("Adadelta", "gpt2", 7.0),
    ("Adafactor", "gpt2", 7.0),
    ("Adafactor", "resnet50", 20.0),
)
_SPEED_IN_KERAS = (
    ("keras-torch", "AdamW", "resnet50", 8.0),
    ("keras-torch", "Adafactor", "tiny", 20.0),
    *(
        (peer, case, model, 1.0)
        for peer in ("keras-jax", "keras-tf", "tf_keras")
        for case in ("AdamW", "Adafactor")
        for model in ("tiny", "resnet50")
    ),
)
_SPEED_IN_PADDLE = (
    ("AdamW", "resnet50", 2.5),
    ("AdamW", "tiny", 8.0),
    ("clip+AdamW+EMA", "resnet50", 5.0),
    ("clip+AdamW+EMA", "tiny", 5.0),
)
_SPEED_IN_JAX = (
    (OTHER_FORMS, "AdamW", "tiny", 1.0),
    (OTHER_FORMS, "AdamW", "resnet50", 1.0),
    (OTHER_FORMS, "AdamW", "gpt2", 1.0),
    (FRONT_ENDS, "AdamW", "resnet50", 2.0),
    (FRONT_ENDS, "Adafactor", "resnet50", 3.0),
)
_SPEED_ON_TENSORS = (("AdamW", "resnet50", 1.1),)


def _targets() -> Iterator[Target]:
    torch = FRONT_ENDS["torch"]
    for own, promised in ((NAME, _SPEED), (torch, (*_SPEED, *_SPEED_ON_TENSORS))):
        for case, model, bound in promised:
            what = f"{own}: {case} on {model}, over torch's best"
            yield Target(what, bound, True, "x", _speed(model, case, own))
    for peer, case, model, bound in _SPEED_IN_KERAS:
        own = FRONT_ENDS[peer]
        what = f"{own}: {case} on {model}, over {LABELS[peer]}"
        yield Target(what, bound, True, "x", _speed(model, case, own, peer))
    for case, model, bound in _SPEED_IN_PADDLE:
        own = FRONT_ENDS["paddle"]
        what = f"{own}: {case} on {model}, over Paddle"
        yield Target(what, bound, True, "x", _speed(model, case, own, "paddle"))
    for forms, case, model, bound in _SPEED_IN_JAX:
        own = forms["optax"]
        what = f"{own}: {case} on {model}, over {LABELS['optax']}"
        yield Target(what, bound, True, "x", _speed(model, case, own, "optax"))
    yield Target(f"{torch}: Python in a step of 500 tensors", 0.6, False, "ms", _python(torch))
    for case in CASES.values():
        if not case.composite:
            bound = 70.0 if case.rule == "Adafactor" else 85.0
            yield Target(
                f"{case.name} on gpt2, of the copy limit", bound, True, "%", _copy(case.name)
            )
    yield Target("step on gradients of 1e-20, worst rule", 1.2, False, "x", _worst_slowdown)
    yield Target("first step, cold", 3000.0, False, "ms", _startup("cold_first_step_ms"))
    yield Target("first step, kernels on disk", 300.0, False, "ms", _startup("disk_first_step_ms"))
    yield Target("import isostep after numpy", 60.0, False, "ms", _startup("import_ms"))
    for figure, bound, unit in (("kernels", 8.0, ""), ("ready_s", 6.0, "s")):
        what = f"{torch}: nothing compiled, worst model and rule, {COLUMNS[figure]}"
        yield Target(what, bound, False, unit, _worst_cold(figure))
    for name in LOADS:
        what = f"{torch}: step under load, {name}, of torch fused's"
        yield Target(what, 1.3, False, "x", _loaded(name))


def _worst_cold(figure: str) -> Callable[[Results], float | None]:
    def read(results: Results) -> float | None:
        return max((found[figure] for _, _, found in results.cold()), default=None)

    return read


def _loaded(name: str) -> Callable[[Results], float | None]:
    def read(results: Results) -> float | None:
        found = [f["ratios"]["step_us"] for load, _, f in results.loads() if load == name]
        return max(found, default=None)

    return read


def _speed(
    model: str, case: str, own: str, peer: str = "torch"
) -> Callable[[Results], float | None]:
    def read(results: Results) -> float | None:
        found = results.speed(model, case, peer, own)
        return found.ratio if found else None

    return read


def _python(own: str) -> Callable[[Results], float | None]:
    def read(results: Results) -> float | None:
        found = results.overhead("tiny", "AdamW", own)
        return found["python_ms"] if found else None

    return read


def _copy(case: str) -> Callable[[Results], float | None]:
    def read(results: Results) -> float | None:
        found = results.copy_share("gpt2", case)
        return 100 * found[0] if found else None

    return read


def _worst_slowdown(results: Results) -> float | None:
    found = [
        results.slowdown(model, case).get("isostep")
        for model in results.models
        for case in results.cases
    ]
    return max((value for value in found if value is not None), default=None)


def _startup(name: str) -> Callable[[Results], float | None]:
    return lambda results: results.startup.get(name)


def verdicts(results: Results) -> list[Verdict]:
    """Each target with its measured value."""
    found: list[Verdict] = []
    for target in _targets():
        value = target.read(results)
        met = None
        if value is not None:
            met = value >= target.bound if target.at_least else value <= target.bound
        found.append(Verdict(target.what, target.bound, target.at_least, target.unit, value, met))
    return found


def as_records(found: list[Verdict]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(verdict) for verdict in found]
