"""optax: functions that make a transformation."""

from __future__ import annotations

from peers.places import Places, pairs


def places() -> Places:
    """Where optax' optimizers are found."""
    import optax
    from absl import flags

    import isostep.jax
    from isostep.jax.optimizer import Optimizer, Steps

    def prepare() -> None:
        flags.FLAGS(["pytest"])  # its tests read flags, which absl's own runner would parse

    return Places(
        pairs=pairs(optax, isostep.jax),
        modules=["optax"],
        constructs=[(Optimizer, "__new__")],
        steps=[(Steps, "update"), (Steps, "apply")],
        prepare=prepare,
    )
