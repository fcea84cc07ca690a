"""Filling the cache of kernels: a step of what `build()` returns, on gradients of zeros."""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from isostep.cli.race.contestants import Entry, parse_entries
from isostep.cli.race.task import load_module


class WarmError(ValueError):
    """Something the user gave cannot be stepped. The text says what to do."""


@dataclass(frozen=True)
class Warmed:
    """What a warm cache has.

    Args:
        path: the directory.
        kernels: how many the step needs.
        compiled: how many of them were not there.
        lost: how many could not be kept.
        ran: what ran, as `optimizer.ran` says it.
    """

    path: str
    kernels: int
    compiled: int
    lost: int
    ran: list[str]


def warmed(model: str, optimizer: str) -> Warmed:
    """Step once, and say what is in the cache now.

    Args:
        model: `FILE.py:NAME` or `package.module:NAME` of a function without arguments.
        optimizer: a name in any case, with hyperparameters in brackets where wanted.

    Raises:
        RaceError: no such file or module, or a text that names no optimizer.
        WarmError: no such function, optimizer or hyperparameter, or nothing that can be stepped.
    """
    from isostep.compile import cache, machine_code

    build = _named(model)
    entries = parse_entries(optimizer)
    if len(entries) != 1:
        raise WarmError(f"optimizer {optimizer!r}: name one, such as adafactor")
    ran = _step(build(), entries[0])
    names = cache.used()
    lost = sum(cache.load(name) is None for name in names)
    places = [str(path) for path in cache.own() if not cache.refusal(path)]
    return Warmed(", ".join(places[:1]), len(names), machine_code.compilations, lost, ran)


def _named(model: str) -> Callable[[], Any]:
    place, separator, name = model.rpartition(":")
    if not separator or not place or not name.isidentifier():
        raise WarmError(f"model {model!r}: expected FILE.py:NAME, such as model.py:build")
    found = getattr(load_module(place), name, None)
    if not callable(found):
        raise WarmError(f"model {model!r}: {place} has no function {name!r}")
    return found


def _step(built: Any, entry: Entry) -> list[str]:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(built, torch.nn.Module):
        return _step_torch(built, entry)
    if isinstance(built, Mapping | list | tuple) and len(built):
        return _step_numpy(built, entry)
    raise WarmError(
        f"build() returned {type(built).__name__}: return a torch module, or NumPy arrays in "
        "(nested) dicts and lists"
    )


def _step_torch(module: Any, entry: Entry) -> list[str]:
    import isostep.torch as front_end

    params = [param for param in module.parameters() if param.requires_grad]
    optimizer = _made(front_end, entry, params)
    for param in params:
        param.grad = param.detach().new_zeros(param.shape)
    optimizer.step()
    return list(optimizer.ran)


def _step_numpy(params: Any, entry: Entry) -> list[str]:
    import isostep.numpy as front_end

    optimizer = _made(front_end, entry, params)
    optimizer.step(_zeros(params))
    return list(optimizer.ran)


def _zeros(params: Any) -> Any:
    if isinstance(params, Mapping):
        return {name: _zeros(value) for name, value in params.items()}
    if isinstance(params, list | tuple):
        return [_zeros(value) for value in params]
    return np.zeros_like(params)


def _made(front_end: Any, entry: Entry, params: Iterable[Any]) -> Any:
    from isostep import rules

    names = {name.casefold(): name for name in rules.names() if hasattr(front_end, name)}
    name = names.get(entry.rule.casefold())
    if name is None:
        raise WarmError(
            f"optimizer {entry.rule!r}: {front_end.__name__} has {', '.join(names.values())}"
        )
    try:
        return getattr(front_end, name)(params, **entry.hyperparameters)
    except (TypeError, ValueError) as error:
        raise WarmError(f"{entry.label}: {error}") from error
