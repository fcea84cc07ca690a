"""torch.optim, then isostep, then torch.optim again, each from the checkpoint of the one before.

    python examples/torch_drop_in.py

A transformer is trained for 300 steps: once by torch.optim.AdamW alone, and once in three parts.
Both runs see the same batches, and end at the same loss.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from char_transformer import Text, make_model, train

from isostep.torch import AdamW

PART = 100
SETTINGS: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}


def uninterrupted(text: Text) -> list[float]:
    """torch.optim for all 300 steps."""
    model = make_model(text.kinds)
    optimizer = torch.optim.AdamW(model.parameters(), **SETTINGS)
    return train(model, optimizer, text, range(3 * PART))


def in_three_parts(text: Text, folder: Path) -> list[float]:
    """torch.optim, isostep, torch.optim: 100 steps each, with files in between."""
    losses: list[float] = []
    for part, adamw in enumerate((torch.optim.AdamW, AdamW, torch.optim.AdamW)):
        model = make_model(text.kinds, seed=part)
        optimizer = adamw(model.parameters(), **SETTINGS)
        if part:
            saved = torch.load(folder / f"{part - 1}.pt", weights_only=True)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
        losses += train(model, optimizer, text, range(part * PART, (part + 1) * PART))
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, folder / f"{part}.pt")
    return losses


def main() -> float:
    """Print both runs side by side and return how far their last losses are apart."""
    torch.set_num_threads(1)  # which is fastest for matrices as small as these
    text = Text()
    alone = uninterrupted(text)
    with tempfile.TemporaryDirectory() as folder:
        parts = in_three_parts(text, Path(folder))
    print("step  torch.optim alone  torch, isostep, torch  difference")
    for step in (0, 99, 100, 150, 199, 200, 250, 299):
        difference = abs(alone[step] - parts[step])
        print(f"{step:4}  {alone[step]:17.7f}  {parts[step]:21.7f}  {difference:10.1e}")
    return abs(alone[-1] - parts[-1])


if __name__ == "__main__":
    main()
