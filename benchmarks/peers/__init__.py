"""One module for each framework: its optimizers as contestants, each at its best.

A module has `contestants(case, params, grads)`, which yields what it has for a case (nothing, if
the framework has no such optimizer), and `versions()`. Frameworks are imported here and nowhere
else, so that a worker loads only its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Protocol, cast

from benchmarks.cases import Case
from benchmarks.models import Floats
from benchmarks.timing import Contestant

MODULES = {
    "torch": "benchmarks.peers.torch_optim",
    "optax": "benchmarks.peers.optax_jit",
    "paddle": "benchmarks.peers.paddle_optim",
    "keras-torch": "benchmarks.peers.keras_torch",
    "keras-jax": "benchmarks.peers.keras_jax",
    "keras-tf": "benchmarks.peers.keras_tf",
    "tf_keras": "benchmarks.peers.tf_keras_optim",
}
TOGETHER = ("torch", "optax")
"""Peers that share a process; each other one has its own."""

FRONT_ENDS = {
    "torch": "isostep.torch",
    "optax": "isostep.jax",
    "paddle": "isostep.paddle",
    "keras-torch": "isostep.keras on torch",
    "keras-jax": "isostep.keras on JAX",
    "keras-tf": "isostep.keras on TF",
    "tf_keras": "isostep.tf_keras",
}
"""Peers in whose place isostep can be put, and what is put there; their modules have `front_end`,
which gives it as a contestant."""

OTHER_FORMS = {"optax": "isostep.jax by XLA"}
"""Peers in whose place isostep can be put in a second way; their modules have `other_form`."""

LABELS = {
    "torch": "torch",
    "optax": "optax",
    "paddle": "Paddle",
    "keras-torch": "Keras, torch",
    "keras-jax": "Keras, JAX",
    "keras-tf": "Keras, TF",
    "tf_keras": "tf_keras",
}


class Peer(Protocol):
    """What a module of this package has."""

    def contestants(
        self, case: Case, params: list[Floats], grads: list[Floats]
    ) -> Iterator[Contestant]:
        """The framework's own steps for `case`, on copies of these arrays."""
        ...

    def versions(self) -> dict[str, str]:
        """The versions that decide what was measured."""
        ...


def load(name: str) -> Peer:
    """The module of peer `name`, with its framework imported."""
    return cast(Peer, importlib.import_module(MODULES[name]))


def processes(names: list[str]) -> list[list[str]]:
    """The peers sorted into processes."""
    together = [name for name in names if name in TOGETHER]
    alone = [[name] for name in names if name not in TOGETHER]
    return ([together] if together else []) + alone
