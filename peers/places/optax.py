"""optax: functions that make a transformation."""

from __future__ import annotations

from peers.places import Places, pairs

CONSTRUCTS = ["isostep.jax.optimizer:Optimizer.__new__"]
STEPS = ["isostep.jax.steps:Steps.update", "isostep.jax.steps:Steps.apply"]


def places() -> Places:
    """Where optax' optimizers are found."""
    import optax
    from absl import flags

    import isostep.jax

    def prepare() -> None:
        flags.FLAGS(["pytest"])  # its tests read flags, which absl's own runner would parse

    return Places(
        pairs=pairs(optax, isostep.jax),
        modules=["optax"],
        constructs=CONSTRUCTS,
        steps=STEPS,
        prepare=prepare,
    )
