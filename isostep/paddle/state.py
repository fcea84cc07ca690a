"""States of Paddle's optimizers: whose entry is whose, and what a state must hold.

Paddle's keys begin with the automatic name of a parameter (`linear_0.w_0_moment1_0`), which shifts
when a model is built again in the same process. isostep also writes down the names that parameters
have in the model, and their order.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import paddle

from isostep import rules
from isostep.errors import StateError
from isostep.paddle import accumulators
from isostep.paddle.accumulators import POWERS, steps_of
from isostep.paddle.planning import dry

KEY = "isostep"
Names = list[tuple[str | None, str]]
"""Of each parameter its name in the model, if it is known, and Paddle's."""
Entries = dict[str, dict[str, Any]]
"""Arrays by Paddle's name of the parameter and of the accumulator."""

_NOT_ENTRIES = (KEY, "LR_Scheduler", "master_weights")
_MASTER = re.compile(r"_fp32_master_\d+$")
_MASTERS = re.compile(r"_fp32_master_\d+_")
_NUMBER = re.compile(r"_\d+$")


@dataclass(frozen=True)
class Saved:
    """What a state holds beside Paddle's own entries.

    Args:
        names: of the parameters, in the optimizer's order.
        steps: that parameters have had, by Paddle's name.
        iteration, skipped: steps of the optimizer, and those that were skipped.
    """

    names: Names
    steps: dict[str, int]
    iteration: int
    skipped: int

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "names": [list(pair) for pair in self.names],
            "steps": dict(self.steps),
            "iteration": self.iteration,
            "skipped": self.skipped,
        }

    @classmethod
    def of(cls, state: Mapping[str, Any], entries: Entries) -> Saved:
        """From a state of isostep or of Paddle.

        Raises:
            StateError: the part of isostep is damaged.
        """
        if KEY not in state:
            return cls([(None, name) for name in entries], {}, 0, 0)
        try:
            own = state[KEY]
            names = [(model, str(name)) for model, name in own["names"]]
            steps = {str(name): int(count) for name, count in own["steps"].items()}
            return cls(names, steps, int(own["iteration"]), int(own["skipped"]))
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"the entry {KEY!r} of the state is damaged: {error!r}") from error


def canonical(key: str) -> str:
    """The key of an accumulator as it is in a fresh process: Paddle numbers them on."""
    if key in _NOT_ENTRIES:
        return key
    return _NUMBER.sub("_0", _MASTERS.sub("_fp32_master_0_", key))


def named(parameters: Any) -> tuple[Any, dict[str, str]]:
    """Parameters as Paddle takes them, and the names that came with them.

    Args:
        parameters: what the user gave: parameters, pairs of name and parameter as
            `Layer.named_parameters()` has them, or groups of either.

    Returns:
        Parameters or groups, and the names by Paddle's name of the parameter.
    """
    names: dict[str, str] = {}

    def bare(given: Any) -> Any:
        if isinstance(given, paddle.Tensor | str | set | Mapping) or not hasattr(given, "__iter__"):
            return given  # a single one, or Paddle's error
        result: list[Any] = []
        for entry in given:
            if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str):
                names[entry[1].name] = entry[0]
                entry = entry[1]
            elif isinstance(entry, Mapping) and "params" in entry:
                entry = {**entry, "params": bare(entry["params"])}
            result.append(entry)
        return result

    return bare(parameters), names


@dataclass
class Loaded:
    """A state that was checked and can be taken in.

    Args:
        optimizer: that takes it in.
        entries: by parameter of the optimizer.
        masters: float32 copies by parameter.
        counts: the steps that each parameter has had, by Paddle's name.
        iteration, skipped: of the optimizer.
    """

    optimizer: Any
    entries: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)
    masters: list[tuple[Any, Any]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    iteration: int = 0
    skipped: int = 0

    def write(self) -> None:
        """Make the accumulators and fill them."""
        optimizer = self.optimizer
        params = [param for param, _ in self.entries] + [param for param, _ in self.masters]
        owners = optimizer.owners([(p, None) for p in params])
        for param, owner in zip(params, owners, strict=True):
            accumulators.create(
                optimizer, [param], optimizer._param_groups[owner] if optimizer.grouped else {}
            )
        for param, value in self.masters:
            copy = accumulators.master(optimizer, param)
            if copy is not None:
                _set(copy, value)
        for param, values in self.entries:
            copy = accumulators.master(optimizer, param)
            for name, value in values.items():
                if name == _called(optimizer, "average"):
                    if optimizer.options().ema is None:
                        continue
                    tensor = accumulators.average(optimizer, param)
                else:
                    holder = param if copy is None else copy
                    tensor = optimizer.kept[name].get(holder.name)
                if tensor is not None:
                    _set(tensor, value)


def load(optimizer: Any, state: Mapping[str, Any]) -> Loaded:
    """Find out whose entries of a state are whose.

    Raises:
        StateError: they are another model's, or incomplete.
    """
    entries = _entries(state, _accumulator_names(optimizer))
    masters = {str(k): v for k, v in (state.get("master_weights") or {}).items()}
    saved = Saved.of(state, entries or {name: {} for name in masters})
    stepper = dry(optimizer, rules.get(optimizer.rule))
    live = {leaf.name: leaf for leaf in stepper.leaves}
    params = {p.name: p for p in optimizer.all_parameters()}
    loaded = Loaded(optimizer, iteration=saved.iteration, skipped=saved.skipped)
    absent: list[str] = []
    found = whose(saved.names, [n for n in optimizer.parameter_names() if n[1] in live])
    for name, leaf in live.items():
        source, needed = found.get(name), {}
        for slot in rules.get(optimizer.rule).active_slots(stepper.recipe(leaf).o):
            called = _called(optimizer, optimizer.spelling.slots[slot.name])
            needed[called] = leaf.slot_shape(slot.per)
        values = entries.get(source or "", {})
        if needed and not values:
            absent.append(name)
            continue
        _check(name, values, needed, leaf.array.shape)
        if values:
            loaded.entries.append((params[name], values))
        if source in masters:
            loaded.masters.append((params[name], masters[source]))
        loaded.counts[name] = _steps(optimizer, saved, source, values, stepper.groups[leaf.group])
    if not saved.iteration:  # a state of Paddle's
        loaded.iteration = max(loaded.counts.values(), default=0)
    _refuse_foreign(entries, absent, live)
    return loaded


def whose(saved: Names, live: Names) -> dict[str, str]:
    """Of each live parameter, by Paddle's name, the Paddle name that it was saved under.

    By name in the model where all have one on both sides; else by Paddle's name where all are in
    the state; else by order, if there are as many; else by Paddle's name as far as it goes.
    """
    if all(model for model, _ in [*saved, *live]) and saved:
        known = dict(saved)
        return {name: known[model] for model, name in live if model in known}
    names = [name for _, name in saved]
    if not {name for _, name in live} <= set(names) and len(names) == len(live):
        return {now: name for (_, now), name in zip(live, names, strict=True)}
    return {name: name for _, name in live if name in names}


def _called(optimizer: Any, accumulator: str) -> str:
    """The name of an accumulator in an optimizer that has a name itself."""
    return accumulator if optimizer._name is None else f"{optimizer._name}_{accumulator}"


def _accumulator_names(optimizer: Any) -> list[str]:
    """All accumulators that a state may have, longer names first."""
    slots = [*optimizer.spelling.slots.values(), *POWERS, "average"]
    return sorted((_called(optimizer, slot) for slot in slots), key=len, reverse=True)


def _entries(state: Mapping[str, Any], known: Sequence[str]) -> Entries:
    found: Entries = {}
    for key, value in state.items():
        stem = _NUMBER.sub("", key)
        if key in _NOT_ENTRIES or stem == key:
            continue
        for accumulator in known:
            if stem.endswith(f"_{accumulator}"):
                param = _MASTER.sub("", stem[: -len(accumulator) - 1])
                found.setdefault(param, {})[accumulator] = value
                break
    return found


def _check(name: str, values: Any, needed: Mapping[str, Any], shape: tuple[int, ...]) -> None:
    missing = sorted(needed.keys() - values.keys())
    if missing:
        raise StateError(
            f"the state of parameter {name!r} lacks {', '.join(missing)}: it was saved by another "
            f"optimizer; nothing was changed"
        )
    for accumulator, value in values.items():
        power = any(accumulator.endswith(p) for p in POWERS)
        due = (1,) if power else tuple(needed.get(accumulator, shape))
        if tuple(value.shape) != due and not (power and tuple(value.shape) == ()):
            raise StateError(
                f"the state {accumulator!r} of parameter {name!r} has shape {tuple(value.shape)}, "
                f"and the parameter needs {due}: the state is another model's; nothing was changed"
            )


def _steps(optimizer: Any, saved: Saved, source: Any, values: Any, group: Any) -> int:
    if source in saved.steps:
        return saved.steps[source]
    read = {
        power: _as_array(values[_called(optimizer, power)])
        for power in POWERS
        if _called(optimizer, power) in values
    }
    if not read:
        return int(bool(values))
    name = max(read, key=lambda power: group.values[POWERS[power]])
    return steps_of(read[name], group.values[POWERS[name]])


def _refuse_foreign(entries: Entries, absent: Sequence[str], live: Mapping[str, Any]) -> None:
    if not absent or (not entries and len(absent) == len(live)):
        return
    if len(absent) == len(live):
        raise StateError(
            f"no entry of the state belongs to a parameter of this optimizer (it has "
            f"{', '.join(list(entries)[:3])}, and the optimizer {', '.join(absent[:3])}): the "
            f"state is another model's; nothing was changed"
        )
    warnings.warn(
        f"the state has nothing for {len(absent)} of {len(live)} parameters, which begin anew: "
        f"{', '.join(absent[:5])}",
        stacklevel=4,
    )


def _as_array(value: Any) -> Any:
    array = value.numpy() if hasattr(value, "numpy") else value
    return array.reshape(-1)[0]


def _set(tensor: Any, value: Any) -> None:
    new = value if isinstance(value, paddle.Tensor) else paddle.to_tensor(value)
    tensor.set_value(paddle.reshape(new, tensor.shape).astype(tensor.dtype))
