"""Runs `optax_cases` through optax: `python -m tests.parity.optax_reference FILE`.

With `update`, `apply` or `native` as a second argument isostep.jax stands in its place, and the
parameters are stepped by `update`, or by `apply` as XLA compiles it or by kernels.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

import isostep.jax
from isostep.recipe import EMA, Clip

from .case import Array, Case, State, defaults, record
from .optax_cases import CASES


def exact_adafactor(
    learning_rate: float | None,
    min_dim_size_to_factor: int,
    decay_rate: float,
    clipping_threshold: float | None,
    weight_decay_rate: float,
    eps: float,
    factored: bool = True,
    multiply_by_parameter_scale: bool = True,
    momentum: float | None = None,
) -> optax.GradientTransformation:
    """`optax.adafactor` from its parts, the decay rate and the momentum in the widest dtype."""
    wide = jax.dtypes.canonicalize_dtype("float64")
    parts = [
        optax.scale_by_factored_rms(
            factored,
            decay_rate,
            min_dim_size_to_factor=min_dim_size_to_factor,
            epsilon=eps,
            decay_rate_fn=lambda i, exponent: 1 - jax.numpy.asarray(i + 1, wide) ** -exponent,
        )
    ]
    if clipping_threshold is not None:
        parts.append(optax.clip_by_block_rms(clipping_threshold))
    if learning_rate is not None:
        parts.append(optax.scale_by_learning_rate(learning_rate, flip_sign=False))
    if multiply_by_parameter_scale:
        parts.append(optax.scale_by_param_block_rms())
    if momentum is not None:
        parts.append(optax.ema(momentum, debias=False, accumulator_dtype=wide))
    return optax.chain(*parts, optax.add_decayed_weights(weight_decay_rate), optax.scale(-1))


class OptaxRunner:
    def __init__(self, case: Case, parameters: dict[str, Array], dtype: str) -> None:
        # As a user has it: 64 bits are switched on for float64 and off for float32.
        jax.config.update("jax_enable_x64", dtype == "float64")
        exact = case.framework_class == "adafactor" and not case.quirk
        make = exact_adafactor if exact else getattr(optax, case.framework_class)
        clip = {"value": optax.clip, "global_norm": optax.clip_by_global_norm}
        self.case = case
        self.transformation = optax.chain(
            clip[case.clip[0]](case.clip[1]) if case.clip else optax.identity(),
            make(**case.arguments),
        )
        self.parameters = {name: jax.numpy.asarray(a) for name, a in parameters.items()}
        self.kept = self.transformation.init(self.parameters)
        self.average: dict[str, Any] = {}
        self.update = jax.jit(self._update)

    def _update(self, gradients: Any, kept: Any, parameters: Any) -> tuple[Any, Any]:
        updates, kept = self.transformation.update(gradients, kept, parameters)
        return optax.apply_updates(parameters, updates), kept

    def step(self, gradients: dict[str, Array | None]) -> None:
        self.parameters, self.kept = self.update(gradients, self.kept, self.parameters)
        if self.case.average:
            step_size = 1 - self.case.average.momentum if self.average else 1.0
            self.average = optax.incremental_update(
                self.parameters, self.average or self.parameters, step_size
            )

    def state(self) -> State:
        trees = {"param": self.parameters} | dict(_slots(self.kept))
        if self.average:
            trees["average"] = self.average
        return {
            name: {
                slot: np.asarray(tree[name])
                for slot, tree in trees.items()
                if tree[name].shape != (1,)  # Adafactor's stand-in for a slot that is not used
            }
            for name in self.parameters
        }


class IsostepRunner(OptaxRunner):
    """isostep.jax, called as optax is, or by its fused form."""

    def __init__(self, case: Case, parameters: dict[str, Array], dtype: str, form: str) -> None:
        jax.config.update("jax_enable_x64", dtype == "float64")
        clip = Clip(**dict([case.clip])) if case.clip else None
        ema = EMA(case.average.momentum, start="first_update") if case.average else None
        arguments = dict(case.arguments)
        if arguments.get("momentum") and case.framework_class == "adafactor":
            arguments["dtype_momentum"] = dtype  # as in `exact_adafactor`
        self.transformation = getattr(isostep.jax, case.framework_class)(
            **arguments, clip=clip, ema=ema, engine="native" if form == "native" else "xla"
        )
        self.parameters = {name: jax.numpy.asarray(a) for name, a in parameters.items()}
        self.kept = self.transformation.init(self.parameters)
        self.update = jax.jit(self._update if form == "update" else self._apply)

    def _apply(self, gradients: Any, kept: Any, parameters: Any) -> tuple[Any, Any]:
        return self.transformation.apply(parameters, gradients, kept)

    def step(self, gradients: dict[str, Array | None]) -> None:
        self.parameters, self.kept = self.update(gradients, self.kept, self.parameters)

    def state(self) -> State:
        kept = self.kept
        slots = kept.slots if isinstance(kept, isostep.jax.State) else dict(_slots(kept))
        trees = {"param": self.parameters, **slots}
        if isinstance(kept, isostep.jax.State) and kept.average is not None:
            trees["average"] = kept.average
        return {
            name: {
                slot: np.asarray(tree[name])
                for slot, tree in trees.items()
                if tree[name].shape != (1,)  # what stands for a slot that is not used
            }
            for name in self.parameters
        }


def _slots(state: Any) -> list[tuple[str, Any]]:
    """(field, tree) of all optax states inside `state` that hold an array for each parameter."""
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        named = zip(state._fields, state, strict=True)
        return [(name, tree) for name, tree in named if isinstance(tree, dict)]
    return [found for inner in state for found in _slots(inner)] if isinstance(state, tuple) else []


def probes() -> dict[str, Array]:
    """What the quirks' tests look at."""
    jax.config.update("jax_enable_x64", False)
    climbing = optax.adadelta()
    one = {"w": jax.numpy.ones(1)}
    update, _ = climbing.update(one, climbing.init(one), one)
    jax.config.update("jax_enable_x64", True)
    wide = {"w": jax.numpy.ones(1, "float64")}
    kept = dict(_slots(optax.adafactor(0.1, momentum=0.9).init(wide)))
    return {
        "defaults": defaults(
            {case.framework_class: getattr(optax, case.framework_class) for case in CASES}
        ),
        "adadelta-default-update": np.asarray(update["w"]),
        "adafactor-momentum": np.asarray(kept["ema"]["w"]),
    }


if __name__ == "__main__":
    if sys.argv[2:]:
        record(sys.argv[1], CASES, partial(IsostepRunner, form=sys.argv[2]), dtypes=["float64"])
    else:
        record(sys.argv[1], CASES, OptaxRunner, probes)
