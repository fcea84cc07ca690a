"""What is looked at in a process of one backend: `python -m tests.keras_frontend.worker NAME ...`.

Prints one JSON object. `KERAS_BACKEND` chooses the backend.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

import isostep.keras
from isostep import Group
from tests.keras_rules import RULES

SHAPES = [(), (5,), (4, 3), (2, 3, 4)]


def variables(seed: int = 0) -> list[Any]:
    random = np.random.default_rng(seed)
    return [
        keras.Variable(random.normal(size=shape), name=f"v{k}") for k, shape in enumerate(SHAPES)
    ]


def gradients(step: int) -> list[Any]:
    random = np.random.default_rng(100 + step)
    return [keras.ops.convert_to_tensor(random.normal(size=shape)) for shape in SHAPES]


def values(kept: list[Any]) -> list[Any]:
    return [np.array(keras.ops.convert_to_numpy(v), dtype=np.float64) for v in kept]


def worst(a: list[Any], b: list[Any]) -> float:
    return max(
        float(np.max(np.abs(x - y) / (np.abs(x).max() + 1e-30)))
        for x, y in zip(a, b, strict=True)
        if x.size
    )


def applier(optimizer: Any, trained: list[Any]) -> Callable[[list[Any]], None]:
    """A step as the backend's trainer makes it, which for JAX is a compiled function."""
    optimizer.build(trained)
    if keras.backend.backend() != "jax":
        return lambda given: optimizer.apply(given, trained)
    import jax

    compiled = jax.jit(optimizer.stateless_apply)

    def apply(given: list[Any]) -> None:
        kept = [trained, optimizer.variables]
        new = compiled([v.value for v in kept[1]], given, [v.value for v in trained])
        for variables, values in zip(kept, new, strict=True):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)

    return apply


def options() -> dict[str, float]:
    """Accumulation, loss scale, clipping, averages and excluded variables in every rule."""
    found: dict[str, float] = {}
    extras: dict[str, dict[str, Any]] = {
        "accumulated": {"gradient_accumulation_steps": 3, "clipnorm": 0.5, "weight_decay": 0.0625},
        "averaged": {
            "gradient_accumulation_steps": 2,
            "use_ema": True,
            "ema_momentum": 0.75,
            "ema_overwrite_frequency": 4,
        },
        "scaled": {"loss_scale_factor": 8.0, "clipvalue": 0.25, "weight_decay": 0.125},
    }
    for rule, given in RULES.items():
        for name, extra in extras.items():
            ends: list[list[Any]] = []
            for classes in (keras.optimizers, isostep.keras):
                trained = variables()
                optimizer = getattr(classes, rule)(**{**given, **extra})
                optimizer.exclude_from_weight_decay(var_names=["v1"])
                apply = applier(optimizer, trained)
                for step in range(14):
                    apply(gradients(step))
                optimizer.finalize_variable_values(trained)
                ends.append(values(trained))
            found[f"{rule} {name}"] = worst(*ends)
    return found


def around() -> dict[str, Any]:
    """Constraints and embeddings, whose gradients TensorFlow gives as rows; the hand vector of
    the moving average."""
    found: dict[str, Any] = {}
    random = np.random.default_rng(0)
    x, y = random.integers(0, 50, size=(64, 4)), random.normal(size=(64, 1))
    on_tensorflow = keras.backend.backend() == "tensorflow"
    # There Keras' own rules with moments square rows that stand twice in a gradient one by one,
    # and Adam steps the moments of the rows alone; isostep's gradients are dense everywhere.
    for rule in ("SGD", *(() if on_tensorflow else ("Adam", "Adafactor"))):
        ends: list[list[float]] = []
        for classes in (keras.optimizers, isostep.keras):
            keras.utils.set_random_seed(0)
            layers = keras.layers
            model = keras.Sequential(
                [
                    layers.Embedding(50, 8),
                    layers.Flatten(),
                    layers.Dense(1, kernel_constraint=keras.constraints.NonNeg()),
                ]
            )
            extra = {"use_ema": True, "ema_overwrite_frequency": 3, "clipnorm": 1.0}
            model.compile(optimizer=getattr(classes, rule)(**RULES[rule], **extra), loss="mse")
            fitted = model.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0)
            ends.append(fitted.history["loss"])
        found[rule] = worst(*[[np.array(losses)] for losses in ends])
    if on_tensorflow:
        import tensorflow as tf

        given = tf.constant(random.normal(size=(3, 5)))
        rows = tf.IndexedSlices(given, tf.constant([1, 4, 1]), (8, 5))
        for rule in ("Adam", "Adafactor"):
            tables: list[Any] = []
            for gradient in (rows, tf.convert_to_tensor(rows)):
                tables.append(keras.Variable(np.ones((8, 5))))
                optimizer = getattr(isostep.keras, rule)(0.125, clipnorm=0.5)
                for _ in range(3):
                    optimizer.apply([gradient], tables[-1:])
            found[rule] = worst(*[values([t]) for t in tables])
    variable = keras.Variable(np.array(2.0))
    optimizer = isostep.keras.SGD(1.0, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3)
    found["average"] = []
    for _ in range(3):
        optimizer.apply([keras.ops.convert_to_tensor(1.0, dtype="float64")], [variable])
        found["average"].append(float(variable))
    return found


def saving() -> dict[str, Any]:
    """A model that is saved and loaded goes on as one that was not."""
    keras.config.set_floatx("float32")
    found: dict[str, Any] = {}
    random = np.random.default_rng(0)
    x, y = random.normal(size=(64, 6)), random.normal(size=(64, 2))
    for rule in RULES:
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.layers.Input((6,)), keras.layers.Dense(2)])
        model.compile(optimizer=getattr(isostep.keras, rule)(**RULES[rule]), loss="mse")
        model.fit(x, y, epochs=2, shuffle=False, verbose=0)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.keras"
            model.save(path)
            again = keras.models.load_model(path)
        for one in (model, again):
            one.fit(x, y, epochs=2, shuffle=False, verbose=0)
        config = again.optimizer.get_config()
        json.dumps(config)
        found[rule] = [
            type(again.optimizer).__module__,
            worst(values(model.trainable_variables), values(again.trainable_variables)),
            config == model.optimizer.get_config(),
        ]
    return found


def groups() -> dict[str, Any]:
    """A group is a second optimizer with its hyperparameters; a poisoned step changes nothing."""
    one = variables()
    grouped = isostep.keras.AdamW(
        0.0625,
        weight_decay=0.125,
        groups=[Group("v1", learning_rate=0.25, weight_decay=0.0)],
        nonfinite="skip",
    )
    two = variables()
    parts = [
        (isostep.keras.AdamW(0.0625, weight_decay=0.125), [0, 2, 3]),
        (isostep.keras.AdamW(0.25, weight_decay=0.0), [1]),
    ]
    for step in range(5):
        g = gradients(step)
        grouped.apply(g, one)
        for optimizer, places in parts:
            optimizer.apply([g[k] for k in places], [two[k] for k in places])
    before = values([*one, *grouped.variables[2:]])
    g = gradients(9)
    g[2] = g[2] * float("nan")
    grouped.apply(g, one)
    after = values([*one, *grouped.variables[2:]])
    config = type(grouped).from_config(grouped.get_config()).get_config()
    return {
        "apart": worst(values(one), values(two)),
        "skipped": all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)),
        "config": config == grouped.get_config(),
    }


def state() -> dict[str, Any]:
    """Numbers kept for each parameter of a matrix, and what ran."""
    found: dict[str, Any] = {}
    for name, given in {"SGD": {}, "AdamW": {}, "Adafactor": {}}.items():
        matrix = keras.Variable(np.zeros((64, 32)), dtype="float32", name="m")
        optimizer = getattr(isostep.keras, name)(**given)
        optimizer.build([matrix])
        kept = sum(int(np.prod(v.shape)) for v in optimizer.variables[2:])
        planned = optimizer.plan()
        optimizer.apply([keras.ops.ones((64, 32), dtype="float32")], [matrix])
        found[name] = [kept, planned.state_bytes, optimizer.ran]
    matrix = keras.Variable(np.zeros((256, 256)), dtype="float32", name="m")
    sizes: list[int] = []
    for classes in (keras.optimizers, isostep.keras):
        optimizer = classes.Adafactor()
        optimizer.build([matrix])
        sizes.append(sum(int(np.prod(v.shape)) for v in optimizer.variables[2:]))
    return found | {"share": sizes[1] / sizes[0]}


def configuration() -> dict[str, Any]:
    """Configurations are JSON, make equal optimizers and stay as they are."""
    schedules = keras.optimizers.schedules
    found: dict[str, Any] = {}
    extra = {
        "learning_rate": schedules.ExponentialDecay(0.5, 10, 0.5),
        "weight_decay": schedules.CosineDecay(0.25, 100),
        "groups": [Group("v1", weight_decay=0.0)],
        "nonfinite": "skip",
        "report": True,
        "use_ema": True,
        "loss_scale_factor": 8.0,
    }
    for rule, given in RULES.items():
        for name, more in {"plain": {}, "everything": extra}.items():
            optimizer = getattr(isostep.keras, rule)(**{**given, **more})
            trained = variables()
            optimizer.exclude_from_weight_decay(var_list=[trained[3]], var_names=["v2"])
            config = json.loads(json.dumps(optimizer.get_config()))
            before = json.dumps(config)
            again = type(optimizer).from_config(config)
            decays = [[o._use_weight_decay(v) for v in trained] for o in (optimizer, again)]
            found[f"{rule} {name}"] = [
                json.dumps(config) == before,
                json.loads(json.dumps(again.get_config())) == config,
                decays == [[True, True, False, False]] * 2,
            ]
    return found


def schedules() -> dict[str, Any]:
    """A decay that follows a schedule, and settings that are changed between steps, are as many
    optimizers one after the other."""

    def decay(step: Any) -> Any:
        return 0.25 / (keras.ops.cast(step, "float64") + 1.0)

    one, two = variables(), variables()
    scheduled = isostep.keras.SGD(0.0625, weight_decay=decay)
    changed = isostep.keras.SGD(0.0625, weight_decay=0.25)
    for step in range(4):
        scheduled.apply(gradients(step), one)
        changed.weight_decay = 0.25 / (step + 1.0)
        changed.apply(gradients(step), two)
    fixed = variables()
    for step in range(4):
        alone = isostep.keras.SGD(0.0625, weight_decay=0.25 / (step + 1.0))
        alone.apply(gradients(step), fixed)
    late, trained = isostep.keras.SGD(0.0625), variables()
    late.apply(gradients(0), trained)
    late.momentum = 0.5
    try:
        late.apply(gradients(1), trained)
        refused = ""
    except isostep.HyperparameterError as error:
        refused = str(error)
    rates: list[str] = []
    for wrong in (
        lambda: isostep.keras.Adam(float("inf")),
        lambda: setattr(isostep.keras.Adam(0.5), "learning_rate", float("nan")),
    ):
        try:
            wrong()
        except isostep.HyperparameterError as error:
            rates.append(str(error))
    typo, said = isostep.keras.SGD(0.5, groups=[Group("nosuch", weight_decay=0.0)]), []
    for _ in range(2):  # the second try says the same
        try:
            typo.apply(gradients(0), variables())
        except isostep.UnknownNameError as error:
            said.append(str(error))
    return {
        "typo": len(said) == 2 and said[0] == said[1],
        "scheduled": worst(values(fixed), values(one)),
        "changed": worst(values(fixed), values(two)),
        "refused": refused,
        "rates": rates,
    }


def overwritten() -> dict[str, float]:
    """Variables that Keras sets to their gradient (scales of float8) are no business of a rule."""
    found: dict[str, float] = {}
    for rule, given in RULES.items():
        ends: list[list[Any]] = []
        for classes in (keras.optimizers, isostep.keras):
            trained = variables()
            trained[1].overwrite_with_gradient = True
            optimizer = getattr(classes, rule)(**given, clipnorm=0.5)
            for step in range(3):
                optimizer.apply(gradients(step), trained)
            ends.append(values(trained))
        found[rule] = worst(*ends)
    return found


def report() -> dict[str, Any]:
    """What a step measures, one that is skipped, and a state saved without statistics."""
    vector = keras.Variable(np.array([3.0, 4.0]), name="vector")
    optimizer = isostep.keras.SGD(0.5, report=True, nonfinite="skip")
    apply = applier(optimizer, [vector])
    apply([keras.ops.convert_to_tensor([0.6, 0.8], dtype="float64")])
    first = optimizer.report
    apply([keras.ops.convert_to_tensor([0.6, float("nan")], dtype="float64")])
    second = optimizer.report
    store: dict[str, Any] = {}
    optimizer.save_own_variables(store)
    group = first.groups[0]
    return {
        "norms": [group.grad_norm, group.update_norm, group.param_norm, first.skipped],
        "skipped": [second.skipped, second.nonfinite, second.groups[0].grad_norm],
        "saved": len(store),
        "kept": len(optimizer.variables),
        "none": isostep.keras.SGD().report is None,
    }


def fit(optimizer: Any, epochs: int = 3) -> list[float]:
    """The losses of a fit on scikit-learn's digits."""
    from sklearn.datasets import load_digits

    keras.utils.set_random_seed(0)
    x, y = (array[:1792] for array in load_digits(return_X_y=True))  # 14 whole batches
    layers = keras.layers
    hidden = layers.Dense(32, activation="relu")
    model = keras.Sequential([layers.Input((64,)), hidden, layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss)
    found = model.fit(x / 16, y, batch_size=128, epochs=epochs, shuffle=False, verbose=0)
    return found.history["loss"]


def precision() -> dict[str, Any]:
    """Mixed precision under `fit`, and variables of low precision themselves."""
    keras.config.set_floatx("float32")
    found: dict[str, Any] = {}
    for policy in ("mixed_float16", "mixed_bfloat16"):
        keras.config.set_dtype_policy(policy)
        both = [fit(c.AdamW(0.01)) for c in (keras.optimizers, isostep.keras)]
        found[policy] = [worst(*[[np.array(losses)] for losses in both]), both[1][-1] < both[1][0]]
    keras.config.set_dtype_policy("float32")
    scaled = keras.optimizers.LossScaleOptimizer(
        isostep.keras.SGD(0.5), initial_scale=4.0, dynamic_growth_steps=2
    )
    vector = keras.Variable(np.ones(2), dtype="float32")
    apply = applier(scaled, [vector])
    for given in (4.0, float("inf"), 2.0):
        apply([keras.ops.convert_to_tensor([given, given], dtype="float32")])
    found["scaled"] = float(vector[0])  # 1 - 0.5 * 4/4, nothing, - 0.5 * 2/2
    low = keras.Variable(np.ones(4), dtype="bfloat16")
    optimizer = isostep.keras.Adam(0.125)
    for _ in range(8):
        optimizer.apply([keras.ops.ones(4, dtype="bfloat16")], [low])
    found["bfloat16"] = float(keras.ops.cast(low, "float32")[0])
    half = keras.Variable(np.ones((4, 4)), dtype="float16")
    optimizer = isostep.keras.Adafactor(0.125)
    for _ in range(3):
        optimizer.apply([keras.ops.zeros((4, 4), dtype="float16")], [half])
    found["float16"] = bool(np.isfinite(values([half])[0]).all())
    return found


def mirrored() -> dict[str, float]:
    """MirroredStrategy: as Keras' own optimizer under it, and no accumulation there."""
    import tensorflow as tf

    device = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    found: dict[str, float] = {}
    for rule, given in RULES.items():
        ends: list[list[float]] = []
        for classes in (keras.optimizers, isostep.keras):
            with strategy.scope():
                extra = {"clipnorm": 0.5, "weight_decay": 0.0625, "use_ema": True}
                ends.append(fit(getattr(classes, rule)(**{**given, **extra}), 2))
        found[rule] = worst(*[[np.array(losses)] for losses in ends])
    with strategy.scope():
        try:
            fit(isostep.keras.SGD(0.5, gradient_accumulation_steps=2), 1)
            found["refused"] = 0.0
        except ValueError:
            found["refused"] = 1.0
    return found


def parallel() -> float:
    """DataParallel over eight devices."""
    alone = fit(isostep.keras.AdamW(0.01, global_clipnorm=0.5))
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    together = fit(isostep.keras.AdamW(0.01, global_clipnorm=0.5))
    return worst([np.array(alone)], [np.array(together)])


def sharded() -> dict[str, Any]:
    """ModelParallel over eight devices: the same numbers as on one, and slots laid out as their
    variables."""
    keras.config.set_floatx("float32")

    def train() -> tuple[list[Any], Any]:
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(16, name="one"), keras.layers.Dense(8, name="two")]
        model = keras.Sequential([keras.layers.Input((8,)), *layers])
        optimizer = isostep.keras.Adafactor(0.0625, global_clipnorm=0.5, use_ema=True)
        model.compile(optimizer=optimizer, loss="mse")
        random = np.random.default_rng(0)
        x, y = random.normal(size=(64, 8)), random.normal(size=(64, 8))
        model.fit(x, y, batch_size=32, epochs=3, shuffle=False, verbose=0)
        return values(model.trainable_variables), optimizer

    alone, _ = train()
    distribution = keras.distribution
    mesh = distribution.DeviceMesh((2, 4), ["batch", "model"], distribution.list_devices())
    layout = distribution.LayoutMap(mesh)
    layout[".*one/kernel"] = (None, "model")
    layout[".*two/kernel"] = ("model", None)
    distribution.set_distribution(
        distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
    )
    found, optimizer = train()
    factors = [v for v in (*optimizer._r, *optimizer._c) if len(v.shape)]  # scalars are unread
    specs = [str(v.value.sharding.spec) for v in factors]
    return {"apart": worst(alone, found), "factors": specs}


LOOKS: dict[str, Callable[[], Any]] = {
    f.__name__: f
    for f in (
        options,
        saving,
        groups,
        state,
        configuration,
        schedules,
        around,
        overwritten,
        report,
        precision,
        mirrored,
        parallel,
        sharded,
    )
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {}
    for look in sys.argv[1:]:
        keras.config.set_floatx("float64")
        results[look] = LOOKS[look]()
    print(json.dumps(results))
