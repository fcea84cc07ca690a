"""Paddle, in dynamic graphs and in programs."""

from __future__ import annotations

from peers.places import Places, pairs


def places() -> Places:
    """Where Paddle's optimizers are found."""
    import paddle

    import isostep.paddle
    from isostep.paddle.optimizer import FusedStep

    return Places(
        pairs=pairs(paddle.optimizer, isostep.paddle),
        modules=["paddle"],
        constructs=[(FusedStep, "__init__")],
        steps=[(FusedStep, "_fused_step"), (FusedStep, "_apply_optimize")],
    )
