"""Paddle, in dynamic graphs and in programs."""

from __future__ import annotations

from peers.places import Places, pairs

CONSTRUCTS = ["isostep.paddle.optimizer:FusedStep.__init__"]
STEPS = [
    "isostep.paddle.optimizer:FusedStep.step",
    "isostep.paddle.optimizer:FusedStep.apply_gradients",
    "isostep.paddle.optimizer:FusedStep._apply_optimize",
]


def places() -> Places:
    """Where Paddle's optimizers are found."""
    import paddle

    import isostep.paddle

    return Places(
        pairs=pairs(paddle.optimizer, isostep.paddle),
        modules=["paddle"],
        constructs=CONSTRUCTS,
        steps=STEPS,
    )
