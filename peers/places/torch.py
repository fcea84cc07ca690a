"""PyTorch: `torch.optim`, and `optim_db`, which the tests import after it."""

from __future__ import annotations

from peers.places import Places, pairs

CONSTRUCTS = ["isostep.torch.optimizer:FusedStep.__init__"]
STEPS = [
    "isostep.torch.optimizer:FusedStep._fused_step",
    "isostep.torch.optimizer:FusedStep._own_step",
]


def places() -> Places:
    """Where torch.optim's classes are found."""
    import torch

    import isostep.torch

    return Places(
        pairs=pairs(torch.optim, isostep.torch),
        modules=["torch"],
        constructs=CONSTRUCTS,
        steps=STEPS,
        tracing=torch.compiler.is_compiling,
    )
