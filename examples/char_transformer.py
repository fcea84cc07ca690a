"""A small character-level transformer over the source of the standard library."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

CONTEXT = 32


class Text:
    """The characters of `argparse.py` as numbers."""

    def __init__(self) -> None:
        text = Path(argparse.__file__).read_text(encoding="utf-8")
        characters = sorted(set(text))
        place = {c: k for k, c in enumerate(characters)}
        self.kinds = len(characters)
        self.data = torch.tensor([place[c] for c in text])

    def batch(self, step: int, size: int = 8) -> tuple[Tensor, Tensor]:
        """Pieces of text and what follows each character; the same for the same step."""
        random = torch.Generator().manual_seed(step)
        starts = torch.randint(len(self.data) - CONTEXT - 1, (size,), generator=random)
        pieces = torch.stack([self.data[s : s + CONTEXT + 1] for s in starts])
        return pieces[:, :-1], pieces[:, 1:]


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer, each behind a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.attend(self.norm1(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.narrow(functional.gelu(self.widen(self.norm2(x))))


class CharTransformer(nn.Module):
    """Predicts the next character."""

    def __init__(self, kinds: int, width: int = 48, depth: int = 2, heads: int = 3) -> None:
        super().__init__()
        self.token = nn.Embedding(kinds, width)
        self.place = nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, kinds, bias=False)

    def forward(self, text: Tensor, following: Tensor) -> Tensor:
        """The loss, in float32 or wider."""
        x = self.token(text) + self.place(torch.arange(text.shape[1]))
        scores = self.head(self.norm(self.blocks(x)))
        scores = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
        return functional.cross_entropy(scores.flatten(0, 1), following.flatten())


def make_model(kinds: int, seed: int = 0) -> CharTransformer:
    """The model, with weights of its own for each seed."""
    torch.manual_seed(seed)
    return CharTransformer(kinds)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, text: Text, steps: range
) -> list[float]:
    """The loss before each step."""
    losses: list[float] = []
    for step in steps:
        optimizer.zero_grad()
        loss = model(*text.batch(step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
