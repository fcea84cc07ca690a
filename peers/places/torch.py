"""PyTorch: `torch.optim`, and `optim_db`, which the tests import after it."""

from __future__ import annotations

from peers.places import Places, pairs


def places() -> Places:
    """Where torch.optim's classes are found."""
    import torch

    import isostep.torch
    from isostep.torch.optimizer import FusedStep

    return Places(
        pairs=pairs(torch.optim, isostep.torch),
        modules=["torch"],
        constructs=[(FusedStep, "__init__")],
        steps=[(FusedStep, "_fused_step")],
        tracing=torch.compiler.is_compiling,
    )
