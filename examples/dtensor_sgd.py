"""Momentum SGD on a mesh of 2 x 2 devices: `mesh=` is the only change to the optimizer.

    python examples/dtensor_sgd.py

Four logical CPU devices stand for the mesh. A network learns scikit-learn's digits there, its
batches split over one axis and its weights over the other, and then on one device. The norm that
gradients are clipped to is of all of them, on all devices.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from tensorflow.experimental import dtensor

from isostep.tf_keras import SGD

STEPS, BATCH = 60, 64
LAYOUTS = {"w1": ["unsharded", "model"], "b1": ["model"], "w2": ["model", "unsharded"], "b2": []}


def weights() -> dict[str, Any]:
    """The first values, the same each time."""
    random = np.random.default_rng(0)
    return {
        "w1": random.normal(scale=0.1, size=(64, 32)),
        "b1": np.zeros(32),
        "w2": random.normal(scale=0.1, size=(32, 10)),
        "b2": np.zeros(10),
    }


def place(value: Any, specs: list[str], mesh: Any) -> Any:
    """A value on the mesh; without one, the value."""
    if mesh is None:
        return tf.constant(value)
    specs = specs + ["unsharded"] * (np.ndim(value) - len(specs))
    whole = dtensor.Layout.replicated(mesh, np.ndim(value))
    on_all = dtensor.copy_to_mesh(tf.constant(value), whole)
    return dtensor.relayout(on_all, dtensor.Layout(specs, mesh))


def train(mesh: Any) -> tuple[dict[str, Any], SGD]:
    """The weights after some steps, and the optimizer."""
    variable = tf.Variable if mesh is None else dtensor.DVariable
    held = {
        name: variable(place(value, LAYOUTS[name], mesh), name=name)
        for name, value in weights().items()
    }
    optimizer = SGD(0.1, momentum=0.9, nesterov=True, global_clipnorm=1.0, mesh=mesh)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            hidden = tf.nn.relu(x @ held["w1"] + held["b1"])
            logits = hidden @ held["w2"] + held["b2"]
            loss = tf.reduce_mean(-tf.reduce_sum(y * tf.nn.log_softmax(logits), axis=1))
        grads = tape.gradient(loss, list(held.values()))
        optimizer.apply_gradients(zip(grads, held.values(), strict=True))
        return loss

    digits, labels = load_digits(return_X_y=True)
    x, y = digits / 16.0, np.eye(10)[labels]
    for k in range(STEPS):
        rows = np.arange(k * BATCH, (k + 1) * BATCH) % len(x)
        loss = step(*(place(part[rows], ["batch"], mesh) for part in (x, y)))
    where = "one device" if mesh is None else "2 x 2 mesh"
    print(f"{where:>12}: loss {float(loss):.7f} after {STEPS} steps")
    return held, optimizer


def gathered(variable: Any) -> Any:
    """All of a variable that lies in parts."""
    whole = dtensor.Layout.replicated(variable.layout.mesh, len(variable.shape))
    return np.array(dtensor.relayout(variable.read_value(), whole))


def main() -> float:
    """Print the layouts, and return how far the two runs are apart."""
    device = tf.config.list_physical_devices("CPU")[0]
    four = [tf.config.LogicalDeviceConfiguration()] * 4
    tf.config.set_logical_device_configuration(device, four)
    mesh = dtensor.create_mesh([("batch", 2), ("model", 2)], devices=[f"CPU:{i}" for i in range(4)])
    laid, optimizer = train(mesh)
    for kept in optimizer.variables:
        print(f"{kept.name.removesuffix(':0'):>12}: {kept.shape} {kept.layout.sharding_specs}")
    alone, _ = train(None)
    return max(float(np.max(np.abs(gathered(laid[n]) - alone[n].numpy()))) for n in laid)


if __name__ == "__main__":
    print(f"largest difference of a weight: {main():.1e}")
