"""timm: its factory hands out torch.optim's classes beside its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from peers.places import Places, torch

NEEDED = {
    "nms": "(Tensor boxes, Tensor scores, float threshold) -> Tensor",
    "qnms": "(Tensor boxes, Tensor scores, float threshold) -> Tensor",
}
"""Operators that torchvision annotates when it is imported."""
_kept: list[Any] = []


def places() -> Places:
    """Where timm finds torch.optim's classes."""
    return replace(torch.places(), modules=["torch", "timm"], prepare=_declare)


def _declare() -> None:
    """Let torchvision be imported, whose compiled operators may fit another build of torch: timm
    imports it, its optimizers do without."""
    from torch.library import Library

    library = Library("torchvision", "FRAGMENT")
    for name, signature in NEEDED.items():
        library.define(name + signature)
    _kept.append(library)
