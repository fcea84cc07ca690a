"""A network trained in plain JAX: a jitted step with donation, which is compiled once.

    python examples/jax_train.py

scikit-learn's digits, in float64, by isostep's AdamW in its fused form and by optax' AdamW; both
clip gradients by their global norm, and no bias decays.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from typing import Any

os.environ.setdefault("JAX_ENABLE_X64", "1")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import isostep
from isostep.jax import adamw

STEPS, BATCH = 200, 64


def weights() -> Any:
    """The first values, the same each time."""
    random = np.random.default_rng(0)
    sizes = (64, 128, 64, 10)
    return {
        f"dense{k}": {
            "kernel": jnp.asarray(random.normal(scale=n**-0.5, size=(n, m))),
            "bias": jnp.zeros(m),
        }
        for k, (n, m) in enumerate(pairwise(sizes))
    }


def loss_of(params: Any, x: Any, y: Any) -> Any:
    """Mean cross-entropy."""
    *hidden, last = params.values()
    for layer in hidden:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    logits = x @ last["kernel"] + last["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def train(optimizer: Any, act: Callable[..., Any]) -> tuple[list[float], int]:
    """The loss of each step, and how often the step was compiled."""

    def step(params: Any, state: Any, x: Any, y: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params, x, y)
        return *act(params, grads, state), loss

    compiled = jax.jit(step, donate_argnums=(0, 1))
    digits, labels = load_digits(return_X_y=True)
    digits = digits / 16
    params = weights()
    state = optimizer.init(params)
    losses: list[float] = []
    for k in range(STEPS):
        rows = np.arange(k * BATCH, (k + 1) * BATCH) % len(digits)
        params, state, loss = compiled(params, state, digits[rows], labels[rows])
        losses.append(float(loss))
    return losses, compiled._cache_size()


def main() -> tuple[float, int]:
    """Print both curves; return how far they are apart, and how often isostep's was compiled."""
    ours = adamw(
        3e-3,
        weight_decay=0.1,
        clip=isostep.Clip(global_norm=1.0),
        groups=[isostep.Group("*/bias", weight_decay=0.0)],
    )
    kernels = jax.tree.map(lambda p: p.ndim > 1, weights())
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(3e-3, weight_decay=0.1, mask=kernels)
    )

    def by_optax(params: Any, grads: Any, state: Any) -> Any:
        updates, state = theirs.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    found, compiled = train(ours, ours.apply)
    expected, _ = train(theirs, by_optax)
    print("step     optax   isostep")
    for k in range(0, STEPS, 40):
        print(f"{k:4}  {expected[k]:.6f}  {found[k]:.6f}")
    print(f"compiled {compiled} time for {STEPS} steps")
    return float(np.max(np.abs(np.array(found) - np.array(expected)))), compiled


if __name__ == "__main__":
    print(f"largest difference of a loss: {main()[0]:.1e}")
