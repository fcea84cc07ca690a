"""AdamW as a fine-tuning uses it in Paddle, saved to a `.pdopt` file and continued in Paddle's own.

    python examples/paddle_adamw.py

scikit-learn's digits. Lower layers learn more slowly (`lr_ratio`, which Paddle refuses on a CPU),
biases and norms do not decay, gradients are clipped by their global norm, and a scheduler sets the
rate. Half way the model and the optimizer are saved. One training goes on with isostep's AdamW, one
loads both files into paddle.optimizer.AdamW, and the losses are compared. Paddle has no `lr_ratio`
on CPUs, so for the second half both say it in Paddle's other words: `ParamAttr(learning_rate=...)`
of each parameter.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paddle
from paddle.optimizer.lr import CosineAnnealingDecay
from sklearn.datasets import load_digits

import isostep.paddle

STEPS, BATCH, DEPTH, RATE = 200, 64, 3, 0.01


def network() -> Any:
    """A small network; automatic names begin anew, so that each gets the same."""
    paddle.seed(0)
    with paddle.utils.unique_name.guard():
        layers: list[Any] = []
        for width_in, width in ((64, 128), (128, 64)):
            layers += [paddle.nn.Linear(width_in, width), paddle.nn.LayerNorm(width)]
            layers += [paddle.nn.ReLU()]
        return paddle.nn.Sequential(*layers, paddle.nn.Linear(64, 10))


def ratios(model: Any) -> dict[str, float]:
    """The factor on the learning rate of each parameter: half for each layer further down."""
    linear = [layer for layer in model if layer.parameters()]
    depth = {p.name: k // 2 for k, layer in enumerate(linear) for p in layer.parameters()}
    return {name: 0.5 ** (DEPTH - 1 - k) for name, k in depth.items()}


def decays(name: str) -> bool:
    """Whether a parameter decays: weights of linear layers do, biases and norms do not."""
    return name.startswith("linear") and ".w_" in name


def settings(model: Any) -> dict[str, Any]:
    """What both frameworks' AdamW are made with."""
    return {
        "parameters": model.parameters(),
        "weight_decay": 0.05,
        "apply_decay_param_fun": decays,
        "grad_clip": paddle.nn.ClipGradByGlobalNorm(1.0),
    }


def train(model: Any, optimizer: Any, rate: CosineAnnealingDecay, steps: range) -> list[float]:
    """The loss of each step."""
    digits, labels = load_digits(return_X_y=True)
    images = paddle.to_tensor(digits / 16.0, "float32")
    classes = paddle.to_tensor(labels, "int64")
    losses: list[float] = []
    for step in steps:
        here = slice(step * BATCH % 1024, step * BATCH % 1024 + BATCH)
        loss = paddle.nn.functional.cross_entropy(model(images[here]), classes[here])
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        rate.step()
        losses.append(float(loss))
    return losses


def go_on(make: Callable[..., Any], files: Path) -> list[float]:
    """The losses of the second half, from the files, by an AdamW."""
    model = network()
    model.set_state_dict(paddle.load(f"{files}.pdparams"))
    scale = ratios(model)
    for p in model.parameters():
        p.optimize_attr["learning_rate"] = scale[p.name]
    with paddle.utils.unique_name.guard():
        rate = CosineAnnealingDecay(RATE, STEPS)
        optimizer = make(rate, **settings(model))
        optimizer.set_state_dict(paddle.load(f"{files}.pdopt"))
        return train(model, optimizer, rate, range(STEPS // 2, STEPS))


def main() -> float:
    """Run it, print what came of it, and return how far the last losses are apart."""
    model = network()
    scale = ratios(model)
    rate = CosineAnnealingDecay(RATE, STEPS)
    optimizer = isostep.paddle.AdamW(rate, **settings(model), lr_ratio=lambda p: scale[p.name])
    before = train(model, optimizer, rate, range(STEPS // 2))
    print(optimizer.plan())
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "half"
        paddle.save(model.state_dict(), f"{files}.pdparams")
        paddle.save(optimizer.state_dict(), f"{files}.pdopt")
        whole = train(model, optimizer, rate, range(STEPS // 2, STEPS))
        ours = go_on(isostep.paddle.AdamW, files)
        theirs = go_on(paddle.optimizer.AdamW, files)
    assert ours == whole  # through the files, bit for bit
    apart = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    print(f"loss: {before[0]:.4f}, half way {before[-1]:.4f}")
    print(f"last loss: isostep {ours[-1]:.7f}, Paddle from isostep's file {theirs[-1]:.7f}")
    print(f"largest difference of any loss: {apart:.1e}")
    return abs(ours[-1] - theirs[-1])


if __name__ == "__main__":
    logging.disable()
    main()
