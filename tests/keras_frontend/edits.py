"""Run as a process on Keras' torch backend: what users do to variables between two steps.

Prints, for each rule, edit and target, how far isostep is from Keras' own class after the same, or
the error; and what ran.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import torch

import isostep.keras

RULES: dict[str, dict[str, Any]] = {
    "AdamW": {
        "learning_rate": 0.125,
        "weight_decay": 0.25,
        "amsgrad": True,
        "beta_1": 0.5,
        "beta_2": 0.75,  # Keras takes 1 - beta_2 ** t in float32, which is inexact near 1
        "epsilon": 0.25,
    },
    "SGD": {"learning_rate": 0.125, "momentum": 0.75, "nesterov": True},
    "RMSprop": {"learning_rate": 0.125, "centered": True, "momentum": 0.5, "epsilon": 0.25},
}


def _replaced(v: Any) -> None:
    v._value = torch.nn.Parameter(v._value.detach().clone() * 0.5, requires_grad=False)


def _transposed(v: Any) -> None:
    v._value.data = v._value.data.t()


def _copied(v: Any) -> None:
    v._value.data = v._value.data.clone()


def _set(v: Any) -> None:
    v._value.data.set_(torch.full((4, 4), 0.25))


def _grown(v: Any) -> None:
    v._value.data = v._value.data.clone()  # memory that is NumPy's cannot be resized
    v._value.data.untyped_storage().resize_(1 << 14)


def _strided(v: Any) -> None:
    wide = torch.zeros(4, 8)
    wide[:, ::2] = v._value.data
    v._value.data = wide[:, ::2]


def _wide(v: Any) -> None:
    v._value.data = v._value.data.double()


EDITS: dict[str, Callable[[Any], Any]] = {
    "assigned": lambda v: v.assign(np.full((4, 4), 0.5)),
    "in place": lambda v: v._value.data.mul_(0.5),
    "replaced": _replaced,
    "transposed": _transposed,
    "copied": _copied,
    "set_": _set,
    "shared": lambda v: v._value.data.share_memory_(),
    "grown": _grown,
    "strided": _strided,
    "wide": _wide,
}
TARGETS: dict[str, Callable[[Any, Any], Any]] = {
    "variable": lambda optimizer, variables: variables[0],
    "slot": lambda optimizer, variables: optimizer.variables[2],
}


def _run(module: Any, rule: str, edit: Any, target: Any) -> tuple[list[Any], Any]:
    start = np.random.default_rng(0).normal(size=(2, 4, 4)).astype("float32")
    variables = [keras.Variable(s, name=f"v{k}") for k, s in enumerate(start)]
    optimizer = getattr(module, rule)(**RULES[rule])
    optimizer.build(variables)
    for taken in range(4):
        if taken == 2:
            with torch.no_grad():
                edit(target(optimizer, variables))
        grads = np.random.default_rng(taken + 1).normal(size=(2, 4, 4)).astype("float32")
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in grads], variables)
    values = [v._value.detach() for v in [*variables, *optimizer.variables]]
    return [v.double().numpy() for v in values], optimizer


def _far(rule: str, edit: Any, target: Any) -> tuple[Any, Any]:
    theirs, _ = _run(keras.optimizers, rule, edit, target)
    try:
        ours, optimizer = _run(isostep.keras, rule, edit, target)
    except Exception as error:
        return f"{type(error).__name__}: {error}", None
    pairs = zip(theirs, ours, strict=True)
    return max(float(abs(a - b).max()) for a, b in pairs), optimizer.ran


def _freed() -> list[Any]:
    """Memory that was freed is refused, changes nothing, and is taken again when it is there."""
    variables = [keras.Variable(np.ones((4, 4), "float32"))]
    optimizer = isostep.keras.AdamW(0.125)
    optimizer.build(variables)
    grads = [keras.ops.ones((4, 4))]
    variables[0]._value.data = variables[0]._value.data.clone()
    optimizer.apply(grads, variables)
    storage, size = variables[0]._value.untyped_storage(), 64
    storage.resize_(0)
    try:
        optimizer.apply(grads, variables)
        refused = ""
    except isostep.errors.ParameterError as error:
        refused = str(error)
    count = int(optimizer.iterations)
    storage.resize_(size)
    variables[0].assign(np.ones((4, 4), "float32"))
    optimizer.apply(grads, variables)
    return [refused, count, int(optimizer.iterations)]


def _stateless(module: Any) -> list[Any]:
    """Two steps by values: what comes out, and whether what went in is as it was."""
    start = np.random.default_rng(0).normal(size=(4, 4)).astype("float32")
    variable = keras.Variable(start)
    optimizer = module.AdamW(**RULES["AdamW"])
    optimizer.build([variable])
    values = [keras.ops.convert_to_tensor(start.copy())]
    kept = [keras.ops.convert_to_tensor(v.numpy().copy()) for v in optimizer.variables]
    given, before = [*values, *kept], [v.numpy().copy() for v in (*values, *kept)]
    for _ in range(2):
        values, kept = optimizer.stateless_apply(kept, [keras.ops.ones((4, 4))], values)
    untouched = all(map(np.array_equal, [v.numpy() for v in given], before))
    same = np.array_equal(variable.numpy(), start) and int(optimizer.iterations) == 0
    new = [v.detach().numpy().astype(float) for v in [*values, *kept]]
    return [untouched and same, new]


def _by_values() -> Any:
    theirs, ours = _stateless(keras.optimizers), _stateless(isostep.keras)
    far = max(float(abs(a - b).max()) for a, b in zip(theirs[1], ours[1], strict=True))
    return [ours[0], far]


if __name__ == "__main__":
    table = {
        f"{rule}, {edit}, {target}": _far(rule, EDITS[edit], TARGETS[target])
        for rule in RULES
        for edit in EDITS
        for target in TARGETS
    }
    print(json.dumps({"table": table, "freed": _freed(), "by values": _by_values()}))
