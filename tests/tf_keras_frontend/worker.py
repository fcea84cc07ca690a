"""What is looked at with TensorFlow: `python -m tests.tf_keras_frontend.worker NAME ...`.

Prints one JSON object. Four logical CPU devices are there.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow.experimental import dtensor

import isostep.tf_keras
from isostep import Group
from tests.keras_rules import RULES

SHAPES = [(), (4,), (4, 6), (2, 4, 6)]
EVERYTHING: dict[str, Any] = {
    "weight_decay": 0.0625,
    "global_clipnorm": 2.0,
    "use_ema": True,
    "ema_momentum": 0.75,
    "ema_overwrite_frequency": 4,
}


def drawn(seed: int) -> list[Any]:
    random = np.random.default_rng(seed)
    return [random.normal(size=shape) for shape in SHAPES]


def worst(a: list[Any], b: list[Any]) -> float:
    return max(
        float(np.max(np.abs(x - y) / (np.abs(x).max() + 1e-30)))
        for x, y in zip(a, b, strict=True)
        if np.size(x)
    )


def values(variables: list[Any]) -> list[Any]:
    return [np.array(v, dtype=np.float64) for v in variables]


def fill(seed: int) -> list[Any]:
    return [tf.Variable(x, name=f"v{k}") for k, x in enumerate(drawn(seed))]


def run(optimizer: Any, variables: list[Any], steps: int = 9, compiled: bool = True) -> list[Any]:
    def step(grads: list[Any]) -> None:
        optimizer.apply_gradients(list(zip(grads, variables, strict=True)))

    act = tf.function(step) if compiled else step
    for k in range(steps):
        act([tf.constant(g) for g in drawn(100 + k)])
    return values(variables)


# -- a mesh --------------------------------------------------------------------------------------

SPECS: list[list[str]] = [[], ["x"], ["x", "y"], ["unsharded", "x", "y"]]


def meshed(value: Any, specs: list[str], mesh: Any) -> Any:
    whole = dtensor.copy_to_mesh(
        tf.constant(value), dtensor.Layout.replicated(mesh, np.ndim(value))
    )
    return dtensor.relayout(whole, dtensor.Layout(specs, mesh))


def gathered(variable: Any) -> Any:
    layout = dtensor.Layout.replicated(variable.layout.mesh, len(variable.shape))
    return np.array(dtensor.relayout(variable.read_value(), layout))


def mesh() -> dict[str, Any]:
    """Every rule with everything on, on a mesh and without: distance, and layouts of the slots."""
    grid = dtensor.create_mesh([("x", 2), ("y", 2)], devices=[f"CPU:{i}" for i in range(4)])
    found: dict[str, Any] = {}
    for rule, given in RULES.items():
        made = getattr(isostep.tf_keras, rule)
        alone = run(made(**{**given, **EVERYTHING}), fill(0))
        laid = [
            dtensor.DVariable(meshed(x, specs, grid), name=f"v{k}")
            for k, (x, specs) in enumerate(zip(drawn(0), SPECS, strict=True))
        ]
        optimizer = made(**{**given, **EVERYTHING}, mesh=grid, report=True)

        @tf.function
        def step(grads: list[Any], optimizer: Any = optimizer, laid: list[Any] = laid) -> None:
            optimizer.apply_gradients(list(zip(grads, laid, strict=True)))

        for k in range(9):
            step([meshed(g, s, grid) for g, s in zip(drawn(100 + k), SPECS, strict=True)])
        layouts = {v.name.removesuffix(":0"): v.layout.sharding_specs for v in optimizer.variables}
        found[rule] = [worst(alone, [gathered(v) for v in laid]), layouts]
    return found


# -- mirrored variables --------------------------------------------------------------------------


def mirrored() -> dict[str, float]:
    """Two replicas with half of each gradient are one optimizer with the sum."""
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    found: dict[str, float] = {}
    for rule, given in RULES.items():
        made = getattr(isostep.tf_keras, rule)
        alone = run(made(**{**given, **EVERYTHING}), fill(0))
        with strategy.scope():
            variables = fill(0)
            optimizer = made(**{**given, **EVERYTHING}, report=True, nonfinite="skip")

        @tf.function
        def step(grads: list[Any], o: Any = optimizer, variables: list[Any] = variables) -> None:
            def replica() -> None:
                part = tf.cast(
                    tf.distribute.get_replica_context().replica_id_in_sync_group, "float64"
                )
                shares = [g * (0.25 + 0.5 * part) for g in grads]
                o.apply_gradients(list(zip(shares, variables, strict=True)))

            strategy.run(replica)

        for k in range(9):
            step([tf.constant(g) for g in drawn(100 + k)])
        copies = [strategy.experimental_local_results(v) for v in variables]
        found[rule] = max(worst(alone, values([c[k] for c in copies])) for k in (0, 1))
    return found


# -- sparse gradients ----------------------------------------------------------------------------


def slices(step: int, rows: int = 3) -> Any:
    random = np.random.default_rng(200 + step)
    indices = random.integers(0, 8, size=rows + 1)
    indices[-1] = indices[0]  # a row that stands in it twice
    return tf.IndexedSlices(tf.constant(random.normal(size=(rows + 1, 5))), indices, (8, 5))


def sparse() -> dict[str, Any]:
    """Sparse gradients beside dense ones; and lazy: rows that are there beside a table that has
    no other rows."""
    found: dict[str, Any] = {}
    table = np.random.default_rng(1).normal(size=(8, 5))
    for rule, given in RULES.items():
        made = getattr(isostep.tf_keras, rule)
        ends: list[Any] = []
        for spread in (False, True):
            variable = tf.Variable(table)
            optimizer = made(**{**given, **EVERYTHING})
            for k in range(6):
                g = slices(k)
                gradient = tf.convert_to_tensor(g) if spread else g
                optimizer.apply_gradients([(gradient, variable)])
            ends.append(values([variable, *optimizer.variables]))
        found[rule] = [worst(*ends)]
        if rule == "Adafactor":
            continue
        whole, part = tf.Variable(table), tf.Variable(table[[1, 4]])
        extra = {"weight_decay": 0.0625, "global_clipnorm": 2.0}
        lazy, dense = made(**{**given, **extra}, lazy=True), made(**{**given, **extra})
        for k in range(6):
            g = tf.constant(np.random.default_rng(k).normal(size=(2, 5)))
            indices = tf.constant([4, 1, 4])
            given_rows = tf.stack([g[1] * 0.25, g[0], g[1] * 0.75])
            lazy.apply_gradients([(tf.IndexedSlices(given_rows, indices, (8, 5)), whole)])
            dense.apply_gradients([(g, part)])
        rest = [k for k in range(8) if k not in (1, 4)]
        still = np.array_equal(whole.numpy()[rest], table[rest])
        found[rule] += [worst([part.numpy()], [whole.numpy()[[1, 4]]]), still]
    try:
        refused = isostep.tf_keras.Adafactor(lazy=True)
        refused.apply_gradients([(slices(0), tf.Variable(table))])
        found["refused"] = ""
    except isostep.GradientError as error:
        found["refused"] = str(error)
    return found


# -- configuration, saving, settings -------------------------------------------------------------


def configuration() -> dict[str, Any]:
    """Configurations are JSON, make equal optimizers and stay as they are."""
    tf_keras.backend.set_floatx("float32")
    schedules = tf_keras.optimizers.schedules
    found: dict[str, Any] = {}
    for rule, given in RULES.items():
        for name, extra in {
            "plain": {},
            "everything": {**EVERYTHING, "jit_compile": False},
            "schedules": {
                "learning_rate": schedules.ExponentialDecay(0.5, 10, 0.5),
                "weight_decay": schedules.CosineDecay(0.25, 100),
                "groups": [Group("v1", weight_decay=0.0)],
                "nonfinite": "skip",
                "report": True,
                "lazy": True,
                **({"adaptive_epsilon": True} if rule == "Adam" else {}),
            },
        }.items():
            optimizer = getattr(isostep.tf_keras, rule)(**{**given, **extra})
            variables = fill(0)
            optimizer.exclude_from_weight_decay(var_list=[variables[3]], var_names=["v2"])
            config = json.loads(json.dumps(optimizer.get_config()))
            before = json.dumps(config)
            again = type(optimizer).from_config(config)
            decays = [[o._use_weight_decay(v) for v in variables] for o in (optimizer, again)]
            found[f"{rule} {name}"] = [
                json.dumps(config) == before,
                json.loads(json.dumps(again.get_config())) == config,
                decays == [[True, True, False, False]] * 2,
            ]
    return found


def digits(rule: str, classes: Any, **extra: Any) -> list[float]:
    """The losses of a fit on scikit-learn's digits."""
    from sklearn.datasets import load_digits

    tf_keras.utils.set_random_seed(0)
    data = load_digits()
    x, y = (data.data / 16.0), data.target
    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [layers.Input((64,)), layers.Dense(32, activation="relu"), layers.Dense(10)]
    )
    optimizer = getattr(classes, rule)(**{**RULES[rule], "learning_rate": 0.01, **extra})
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss)
    return model.fit(x, y, batch_size=128, epochs=3, verbose=0, shuffle=False).history["loss"]


def fits() -> dict[str, float]:
    """A model that is fitted by isostep's classes and by tf_keras' own."""
    extra = {"weight_decay": 0.004, "clipnorm": 0.5, "use_ema": True}
    found: dict[str, float] = {}
    for rule in RULES:
        both = [digits(rule, c, **extra) for c in (tf_keras.optimizers, isostep.tf_keras)]
        found[rule] = worst(*[[np.array(losses)] for losses in both])
        found[f"{rule} falls"] = both[1][-1] / both[1][0]
    return found


def mixed() -> dict[str, Any]:
    """Mixed precision: tf_keras wraps the optimizer in one that scales the loss."""
    tf_keras.backend.set_floatx("float32")
    found: dict[str, Any] = {}
    for policy in ("mixed_float16", "mixed_bfloat16"):
        tf_keras.mixed_precision.set_global_policy(policy)
        both = [digits("AdamW", c) for c in (tf_keras.optimizers, isostep.tf_keras)]
        found[policy] = worst(*[[np.array(losses)] for losses in both])
    tf_keras.mixed_precision.set_global_policy("float32")
    return found


def saving() -> dict[str, Any]:
    """A model saved midway goes on as one that was not; so does a checkpoint."""
    tf_keras.backend.set_floatx("float32")
    found: dict[str, Any] = {}
    random = np.random.default_rng(0)
    x, y = random.normal(size=(64, 6)), random.normal(size=(64, 2))
    for rule, given in RULES.items():
        tf_keras.utils.set_random_seed(0)
        model = tf_keras.Sequential([tf_keras.layers.Input((6,)), tf_keras.layers.Dense(2)])
        model.compile(optimizer=getattr(isostep.tf_keras, rule)(**given, report=True), loss="mse")
        model.fit(x, y, epochs=2, shuffle=False, verbose=0)
        with tempfile.TemporaryDirectory() as folder:
            model.save(Path(folder) / "model.keras")
            again = tf_keras.models.load_model(Path(folder) / "model.keras")
            state = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
            kept = state.save(str(Path(folder) / "state"))
            for one in (model, again):
                one.fit(x, y, epochs=2, shuffle=False, verbose=0)
            end = values(model.trainable_variables)
            apart = worst(end, values(again.trainable_variables))
            state.restore(kept).assert_consumed()
            model.fit(x, y, epochs=2, shuffle=False, verbose=0)
        restored = worst(end, values(model.trainable_variables))
        found[rule] = [type(again.optimizer).__module__, apart, restored]
    return found


def methods() -> dict[str, Any]:
    """Every method of the table, and what its wrong calls say."""
    found: dict[str, Any] = {}

    def error(call: Callable[[], Any]) -> list[str]:
        try:
            call()
        except Exception as raised:
            return [type(raised).__name__, str(raised)]
        return ["", ""]

    made = isostep.tf_keras.SGD(0.5, momentum=0.5)
    w, b = tf.Variable(np.ones((2, 3)), name="w"), tf.Variable(np.ones(3), name="b")
    found["set_weights unbuilt"] = error(lambda: made.set_weights([]))
    found["no tape"] = error(lambda: made.compute_gradients(tf.constant(1.0), [w]))
    pairs = made.compute_gradients(lambda: tf.reduce_sum(w * w), lambda: [w, b])
    found["pairs"] = [g is None for g, _ in pairs]
    found["all none"] = error(lambda: made.apply_gradients([(None, w)]))
    made.exclude_from_weight_decay(var_names=["b"])
    made.build([w, b])
    made.build([w, b])  # once is enough
    found["variables"] = [v.name for v in made.variables]
    found["callable variables"] = len(made.variables())
    found["none is a no-op"] = int(made.apply_gradients([]))
    found["minimize"] = made.minimize(lambda: tf.reduce_sum(w * w) + tf.reduce_sum(b), [w, b])
    found["w"] = float(w[0, 0])  # 1 - 0.5 * 2
    found["iterations"] = int(made.iterations)
    found["excluded late"] = error(lambda: made.exclude_from_weight_decay(var_names=["w"]))
    found["iterations late"] = error(lambda: setattr(made, "iterations", tf.Variable(0)))
    found["unknown"] = error(
        lambda: made.apply_gradients([(tf.ones(2, "float64"), tf.Variable([1.0, 1.0]))])
    )
    found["shape"] = error(lambda: made.set_weights([np.zeros(3)]))
    made.set_weights([np.array(5), *[np.zeros(v.shape) for v in made.variables[1:]]])
    found["set"] = int(made.iterations)
    made.learning_rate = 0.25
    found["lr"] = float(made.lr)
    scheduled = isostep.tf_keras.SGD(tf_keras.optimizers.schedules.CosineDecay(0.5, 10))
    found["schedule"] = error(lambda: setattr(scheduled, "learning_rate", 0.1))
    found["added"] = made.add_variable([2], "float32", "ones", "mine").shape.as_list()
    found["legacy"] = error(lambda: isostep.tf_keras.SGD(decay=0.1))
    found["misspelt"] = error(lambda: isostep.tf_keras.SGD(momentun=0.1))
    found["two clips"] = error(lambda: isostep.tf_keras.SGD(clipnorm=1.0, global_clipnorm=1.0))
    found["momentum"] = error(lambda: isostep.tf_keras.SGD(use_ema=True, ema_momentum=2))
    found["no decay"] = error(lambda: isostep.tf_keras.AdamW(weight_decay=None))
    found["rate"] = error(lambda: isostep.tf_keras.SGD(float("inf")))
    found["rate set"] = error(lambda: setattr(isostep.tf_keras.SGD(), "lr", float("nan")))
    found["nonfinite"] = error(lambda: isostep.tf_keras.SGD(nonfinite="raise"))
    grid = dtensor.create_mesh([("x", 4)], devices=[f"CPU:{i}" for i in range(4)])
    found["lazy on a mesh"] = error(lambda: isostep.tf_keras.SGD(lazy=True, mesh=grid))
    lone = isostep.tf_keras.SGD(0.5)
    v = tf.Variable(np.ones(2))
    lone.build([v])
    lone.update_step(tf.ones(2, "float64"), v)
    found["update_step"] = float(v[0])
    lone.momentum = 0.5
    found["switched on late"] = error(lambda: lone.apply_gradients([(tf.ones(2, "float64"), v)]))
    averaged = isostep.tf_keras.SGD(1.0, use_ema=True, ema_momentum=0.5)
    v = tf.Variable(np.full(2, 2.0))
    averaged.apply_gradients([(tf.ones(2, "float64"), v)])
    averaged.finalize_variable_values([v])
    found["finalized"] = float(v[0])
    averaged = isostep.tf_keras.SGD(1.0, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3)
    v = tf.Variable(np.array(2.0))
    found["average"] = []
    for _ in range(3):
        averaged.apply_gradients([(tf.ones((), "float64"), v)])
        found["average"].append(float(v))
    bound = isostep.tf_keras.SGD(1.0, use_ema=True)
    v = tf.Variable(np.ones(2), constraint=tf_keras.constraints.NonNeg())
    bound.apply_gradients([(tf.constant([4.0, 0.5], "float64"), v)])
    found["constraint"] = v.numpy().tolist()
    return found


def xla() -> dict[str, Any]:
    """What compiles a step, and what is said where it is not XLA."""
    heard = io.StringIO()
    logging.getLogger("isostep").addHandler(logging.StreamHandler(heard))
    found: dict[str, Any] = {}
    for name, given in {
        "default": {},
        "on": {"jit_compile": True},
        "off": {"jit_compile": False},
    }.items():
        optimizer = isostep.tf_keras.Adam(**given)
        run(optimizer, fill(0), 2, compiled=False)
        found[name] = optimizer.ran
    optimizer = isostep.tf_keras.Adam(jit_compile=True, lazy=True)
    variable = tf.Variable(np.ones((8, 5)))
    for k in range(2):
        optimizer.apply_gradients([(slices(k), variable)])
    return found | {"lazy": optimizer.ran, "heard": heard.getvalue().splitlines()}


def states() -> dict[str, Any]:
    """Numbers kept for a matrix, as planned and as they are; a report; low precision."""
    tf_keras.backend.set_floatx("float32")
    found: dict[str, Any] = {}
    for rule in ("SGD", "AdamW", "Adafactor"):
        matrix = tf.Variable(tf.zeros((64, 32)), name="m")
        optimizer = getattr(isostep.tf_keras, rule)()
        optimizer.build([matrix])
        kept = sum(int(np.prod(v.shape)) for v in optimizer.variables[1:] if hasattr(v, "handle"))
        found[rule] = [kept, optimizer.plan().state_bytes]
    vector = tf.Variable([3.0, 4.0])
    optimizer = isostep.tf_keras.SGD(0.5, report=True, nonfinite="skip")
    optimizer.apply_gradients([(tf.constant([0.6, 0.8]), vector)])
    measured = optimizer.report
    assert measured is not None
    group = measured.groups[0]
    found["report"] = [group.grad_norm, group.update_norm, group.param_norm, measured.skipped]
    before = vector.numpy()
    optimizer.apply_gradients([(tf.constant([0.6, np.nan]), vector)])
    found["skipped"] = [optimizer.report.skipped, bool(np.array_equal(before, vector.numpy()))]
    low = tf.Variable(tf.ones(4, tf.bfloat16))
    optimizer = isostep.tf_keras.Adam(0.125)
    for _ in range(8):
        optimizer.apply_gradients([(tf.ones(4, tf.bfloat16), low)])
    found["bfloat16"] = float(low[0])
    half = tf.Variable(tf.ones((4, 4), tf.float16))
    optimizer = isostep.tf_keras.Adafactor(0.125)
    for _ in range(3):
        optimizer.apply_gradients([(tf.zeros((4, 4), tf.float16), half)])
    found["float16"] = bool(np.isfinite(half.numpy()).all())
    return found


LOOKS: dict[str, Callable[[], Any]] = {
    f.__name__: f
    for f in (mesh, mirrored, sparse, configuration, fits, mixed, saving, methods, xla, states)
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    device = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 4)
    results: dict[str, Any] = {}
    for look in sys.argv[1:] or LOOKS:
        tf_keras.backend.set_floatx("float64")
        results[look] = LOOKS[look]()
    print(json.dumps(results))
