"""What a subclass overrides: every method of torch's classes, against torch's own.

An override halves the first parameter and then does what it overrides. Were it called at another
time, or not at all, parameters would differ.
"""

from __future__ import annotations

import copy
import inspect
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import isostep
from isostep import dialects

from .twins import FULL, NAMES, give, make_grads, make_params
from .twins import ours as made_by_us
from .twins import theirs as made_by_torch

POINTS = dialects.get("torch").extension_points
OBJECT = frozenset(dir(object)) - {"__init__", "__repr__", "__getstate__"}
CLASS_LEVEL = ("profile_hook_step",)  # is asked of the class, once for all of its objects


def methods(name: str) -> list[str]:
    cls = made_by_torch(name)
    found = [m for m in dir(cls) if inspect.isroutine(getattr(cls, m))]
    return [m for m in found if m not in OBJECT and m not in CLASS_LEVEL]


CASES = [(name, method) for name in NAMES for method in methods(name)]


def recording(base: Any, method: str, calls: list[str]) -> Any:
    """A subclass that overrides one method."""

    def override(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(method)
        _halve(self)
        return getattr(super(made, self), method)(*args, **kwargs)

    def static(*args: Any, **kwargs: Any) -> Any:
        calls.append(method)
        return getattr(base, method)(*args, **kwargs)

    is_static = isinstance(inspect.getattr_static(base, method), staticmethod)
    made: Any = type("Mine", (base,), {method: staticmethod(static) if is_static else override})
    return made


def _halve(optimizer: Any) -> None:
    groups = getattr(optimizer, "param_groups", None)
    if groups:
        with torch.no_grad():
            groups[0]["params"][0].mul_(0.5)


def drive(make: Callable[[list[Any]], Any]) -> tuple[list[Any], Any]:
    """All that a training script may do with an optimizer."""
    params = make_params()
    optimizer = make(params[:-1])
    if not isinstance(optimizer, torch.optim.Adagrad):  # torch's own raises KeyError for later ones
        optimizer.add_param_group({"params": params[-1:]})
    optimizer.register_step_pre_hook(lambda *_: None)
    optimizer.register_step_post_hook(lambda *_: None)

    def closure() -> Any:
        return sum((p * p).sum() for p in params)

    for step in range(4):
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        give(params, make_grads(params, step))
        optimizer.step(closure if step % 2 else None)
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    saved.seek(0)
    optimizer.load_state_dict(torch.load(saved))
    assert repr(copy.deepcopy(optimizer))
    if hasattr(optimizer, "share_memory"):
        optimizer.share_memory()
    optimizer.step()
    return params, optimizer


@pytest.mark.parametrize(("name", "method"), CASES)
def test_an_override_is_called_when_torch_calls_it(name: str, method: str) -> None:
    calls: tuple[list[str], list[str]] = ([], [])
    classes = (made_by_torch(name), made_by_us(name))
    made = [recording(c, method, seen) for c, seen in zip(classes, calls, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        (a, _), (b, optimizer) = (
            drive(lambda params, cls=cls: cls(params, **FULL[name])) for cls in made
        )
    assert len(calls[0]) == len(calls[1])
    for p, q in zip(a, b, strict=True):
        assert torch.allclose(p, q, rtol=1e-12, atol=1e-12)
    ran = optimizer.ran
    assert ran == ["torch.optim"] if method in POINTS else "native" in ran[0]


@pytest.mark.parametrize("point", POINTS)
def test_a_method_set_on_the_object_counts_at_once(point: str) -> None:
    params = make_params()
    optimizer = made_by_us("AdamW")(params)
    calls: list[int] = []
    own = getattr(optimizer, point)
    for step in range(4):
        give(params, make_grads(params, step))
        optimizer.step()
        if step == 1:
            setattr(optimizer, point, lambda *args: (calls.append(1), own(*args))[1])
    assert len(calls) == 2


def test_a_group_of_which_a_subclass_takes_a_part() -> None:
    def halves(base: Any) -> Any:
        class Halves(base):
            def _init_group(self, group: Any, *lists: Any) -> Any:
                part = {**group, "params": group["params"][::2]}
                return super()._init_group(part, *lists)

        return Halves

    results: list[list[Any]] = []
    for classes in (made_by_torch, made_by_us):
        params = make_params()
        optimizer = halves(classes("Adam"))(params, **FULL["Adam"])
        for step in range(3):
            give(params, make_grads(params, step))
            optimizer.step()
        results.append(params)
    assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))


@pytest.mark.parametrize(
    "extra",
    [
        {"clip": isostep.Clip(global_norm=1.0)},
        {"ema": 0.9},
        {"dialect": "keras"},
        {"decay": "coupled"},
        {"master_weights": True},
        {"state_dtype": "float32"},
        {"nonfinite": "skip"},
        {"lazy": True},
        {"report": True},
        {"lr_ratio": {"*": 0.5}},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_what_torchs_own_step_lacks_is_refused_beside_an_override(extra: dict[str, Any]) -> None:
    class Mine(made_by_us("AdamW")):
        def _init_group(self, *args: Any) -> Any:
            return super()._init_group(*args)

    named = [(f"p{k}", p) for k, p in enumerate(make_params())]
    message = rf"{next(iter(extra))}: .*Mine, which overrides _init_group"
    with pytest.raises(isostep.HyperparameterError, match=message):
        Mine(named, **extra)


def test_patterns_only_make_groups_and_go_with_an_override() -> None:
    class Mine(made_by_us("AdamW")):
        def _init_group(self, *args: Any) -> Any:
            return super()._init_group(*args)

    named = [("a", make_params()[1]), ("b.bias", make_params()[1])]
    groups = [isostep.Group("a", lr=0.5)]
    optimizer = Mine(named, groups=groups, exclude_from_weight_decay=["*.bias"])
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (0.5, 0.01),
        (1e-3, 0),
    ]
