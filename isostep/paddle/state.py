"""States of Paddle's optimizers: whose entry is whose, and what a state must hold.

Paddle's keys begin with the automatic name of a parameter (`linear_0.w_0_moment1_0`), which shifts
when a model is built again in the same process. isostep also writes down the names that parameters
have in the model, and their order.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import paddle

from isostep import rules
from isostep.errors import StateError
from isostep.paddle import accumulators
from isostep.paddle.accumulators import called
from isostep.paddle.grad_mode import unrecorded
from isostep.paddle.planning import dry
from isostep.paddle.powers import POWERS, agreed, nearest
from isostep.paddle.tensors import has_memory

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
            counts = (int(own["iteration"]), int(own["skipped"]))
            if min([*counts, *steps.values()]) < 0:
                raise ValueError("a count is below zero")
            return cls(names, steps, *counts)
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"the entry {KEY!r} of the state is damaged: {error!r}") from error


def keyed(accumulators: Mapping[str, Mapping[str, Any]], state: Mapping[str, Any]) -> Entries:
    """A state with the keys that it has in a fresh process, where Paddle numbers nothing on.

    Args:
        accumulators: by their name and that of the parameter.
        state: of Paddle, whose keys are the names of tensors.
    """
    found = {
        _MASTERS.sub("_fp32_master_0_", f"{param}_{name}_0"): tensor
        for name, held in accumulators.items()
        for param, tensor in held.items()
    }
    known = {tensor.name for held in accumulators.values() for tensor in held.values()}
    return {key: value for key, value in state.items() if key not in known} | found


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

    def made(self) -> dict[str, Any]:
        """Attributes of an optimizer that goes on from this state; what has no entry begins anew.
        The optimizer itself is left as it is."""
        made = accumulators.without(self.optimizer)
        self._fill(made)
        kept = {name: getattr(made, name) for name in accumulators.KEPT}
        counts = {"_counts": self.counts, "_iteration": self.iteration, "_skipped": self.skipped}
        return {**kept, **counts}

    @unrecorded
    def _fill(self, optimizer: Any) -> None:
        """Make the accumulators of the state, and fill them."""
        params = [param for param, _ in self.entries] + [param for param, _ in self.masters]
        owners = optimizer.owners([(p, None) for p in params])
        accumulators.create(optimizer, params, owners)
        for param, value in self.masters:
            copy = accumulators.master(optimizer, param)
            if copy is not None:
                _set(copy, value)
        for param, values in self.entries:
            copy = accumulators.master(optimizer, param)
            for name, value in values.items():
                if name == called(optimizer, "average"):
                    if optimizer.options().ema is None:
                        continue
                    tensor = accumulators.average(optimizer, param)
                else:
                    holder = param if copy is None else copy
                    tensor = optimizer._accumulators.get(name, {}).get(holder.name)
                if tensor is not None:
                    _set(tensor, value)


def load(optimizer: Any, state: Mapping[str, Any]) -> Loaded:
    """Find out whose entries of a state are whose.

    Raises:
        StateError: they are another model's or another optimizer's, or incomplete.
    """
    rule = rules.get(optimizer.rule)
    entries = _entries(state, _accumulator_names(optimizer))
    masters = {str(k): v for k, v in (state.get("master_weights") or {}).items()}
    saved = Saved.of(state, entries or {name: {} for name in masters})
    stepper = dry(optimizer, rule, frozen=True)
    params = {p.name: p for p in optimizer.all_parameters()}
    loaded = Loaded(optimizer, iteration=saved.iteration, skipped=saved.skipped)
    absent: list[str] = []
    trained = {name for name, p in params.items() if not p.stop_gradient}
    found = whose(saved.names, optimizer.parameter_names(), trained)
    for leaf in stepper.leaves:
        name, group = leaf.name, stepper.groups[leaf.group]
        source = found.get(name, "")
        slots = rule.active_slots(stepper.recipe(leaf).o)
        needed = {
            called(optimizer, optimizer.spelling.slots[s.name]): leaf.slot_shape(s.per)
            for s in slots
        }
        values = entries.get(source, {})
        if needed and not values:
            absent += [name] * (name in trained)
            continue
        _check(name, values, needed, leaf.array.shape)
        if values:
            loaded.entries.append((params[name], values))
        if source in masters:
            loaded.masters.append((params[name], masters[source]))
        if values or source in saved.steps:
            loaded.counts[name] = _steps(optimizer, saved.steps.get(source), values, group)
    if not saved.iteration:  # a state of Paddle's
        loaded.iteration = max(loaded.counts.values(), default=0)
    _judge(optimizer, state, entries, absent, trained)
    return loaded


def whose(saved: Names, live: Names, trained: Collection[str]) -> dict[str, str]:
    """Of each live parameter, by Paddle's name, the Paddle name that it was saved under.

    By name in the model where all have one on both sides; else by Paddle's name where all are in
    the state; else by order, if there are as many; else by Paddle's name as far as it goes. Paddle
    saves only what was trained, so both are tried with all parameters and with the trained ones.

    Args:
        saved, live: names on both sides.
        trained: Paddle's names of live parameters that do not stop gradients.
    """
    if saved and all(model for model, _ in [*saved, *live]):
        known = dict(saved)
        return {name: known[model] for model, name in live if model in known}
    names = [name for _, name in saved]
    every = [name for _, name in live]
    some = [name for name in every if name in trained]
    if not (some and set(some) <= set(names)):
        for now in (every, some):
            if len(now) == len(names):
                return dict(zip(now, names, strict=True))
    return {name: name for name in every if name in names}


def _accumulator_names(optimizer: Any) -> list[str]:
    """All accumulators that a state may have, longer names first."""
    slots = [*optimizer.spelling.slots.values(), *POWERS, "average"]
    return sorted((called(optimizer, slot) for slot in slots), key=len, reverse=True)


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
        if not hasattr(value, "shape"):
            raise StateError(
                f"the state {accumulator!r} of parameter {name!r} is {value!r} and no array; "
                f"nothing was changed"
            )
        if isinstance(value, paddle.Tensor) and not has_memory(value):
            raise StateError(
                f"the state {accumulator!r} of parameter {name!r} has less memory than its shape "
                f"{tuple(value.shape)} needs: give it values again; nothing was changed"
            )
        power = any(accumulator.endswith(p) for p in POWERS)
        due = (1,) if power else tuple(needed.get(accumulator, shape))
        if tuple(value.shape) != due and not (power and tuple(value.shape) == ()):
            raise StateError(
                f"the state {accumulator!r} of parameter {name!r} has shape {tuple(value.shape)}, "
                f"and the parameter needs {due}: the state is another model's; nothing was changed"
            )


def _steps(optimizer: Any, believed: int | None, values: Any, group: Any) -> int:
    """The steps that a parameter has had. Powers, which stand beside the moments, are believed
    before a count, which may have been noted at another time."""
    read = [
        (group.values[POWERS[power]], _number(values[called(optimizer, power)]))
        for power in POWERS
        if called(optimizer, power) in values
    ]
    if not read:
        return int(bool(values)) if believed is None else believed
    count = agreed(read, believed or 0)
    return nearest(read) if count is None else count


def _judge(
    optimizer: Any,
    state: Mapping[str, Any],
    entries: Entries,
    absent: Sequence[str],
    trained: Collection[str],
) -> None:
    """Refuse a state that has nothing for this optimizer; say what a partial one lacks."""
    if not absent:
        return
    nothing = len(absent) == len(trained)
    fresh = not optimizer.steps()
    if nothing and not (fresh and not entries and set(state) <= {*_NOT_ENTRIES}):
        there = ", ".join([key for key in state if key not in _NOT_ENTRIES][:3]) or "nothing"
        raise StateError(
            f"no entry of the state belongs to a parameter of this {optimizer.spelling.class_name} "
            f"(the state has {there}; the optimizer steps {', '.join(absent[:3])}): it is another "
            f"model's or another optimizer's; nothing was changed"
        )
    if not nothing:
        warnings.warn(
            f"the state has nothing for {len(absent)} of {len(trained)} parameters, which begin "
            f"anew: {', '.join(absent[:5])}",
            stacklevel=4,
        )


def _number(value: Any) -> Any:
    array = value.numpy() if hasattr(value, "numpy") else value
    return array.reshape(-1)[0]


def _set(tensor: Any, value: Any) -> None:
    new = value if isinstance(value, paddle.Tensor) else paddle.to_tensor(value)
    tensor.set_value(paddle.reshape(new, tensor.shape).astype(tensor.dtype))
