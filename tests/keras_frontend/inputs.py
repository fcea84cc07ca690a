"""What Keras' optimizers take, each input as Keras takes it: `python -m
tests.keras_frontend.inputs`, on the backend that `KERAS_BACKEND` says. Prints one JSON object."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

import isostep.keras
from isostep import Group
from isostep.keras.namespace import KerasNamespace
from tests.keras_rules import RULES

BACKEND = keras.backend.backend()
BOTH = (keras.optimizers, isostep.keras)
ROWS = [1, 4, 1]
TABLE = (6, 2)
HALVING = keras.optimizers.schedules.ExponentialDecay(1.0, 1, 0.5)


def variable(value: Any, name: str = "v") -> Any:
    return keras.Variable(np.asarray(value), dtype="float32", name=name)


def tensor(value: Any) -> Any:
    return ops.convert_to_tensor(np.asarray(value), dtype="float32")


def array(value: Any) -> Any:
    return np.array(ops.convert_to_numpy(value))


def worst(ends: list[list[Any]]) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(*ends, strict=True) if x.size)


def said(act: Callable[[], Any]) -> str:
    try:
        act()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def rows() -> Any:
    """Rows of a table's gradient, one of them twice."""
    return np.arange(6.0, dtype=np.float32).reshape(3, 2) - 2.0


def whole() -> Any:
    """The gradient that the rows stand for."""
    table = np.zeros(TABLE, np.float32)
    np.add.at(table, ROWS, rows())
    return table


def sparse() -> dict[str, Any]:
    if BACKEND == "tensorflow":
        import tensorflow as tf

        given = tf.constant(rows())
        return {
            "slices": tf.IndexedSlices(given, tf.constant(ROWS), tf.constant(TABLE)),
            "slices without dense shape": tf.IndexedSlices(given, tf.constant(ROWS)),
        }
    if BACKEND == "jax":
        import jax.numpy as jnp
        from jax.experimental.sparse import BCOO

        return {"rows": BCOO((jnp.asarray(rows()), jnp.asarray(ROWS)[:, None]), shape=TABLE)}
    import torch

    given = torch.sparse_coo_tensor(torch.tensor([ROWS]), torch.tensor(rows()), TABLE)
    return {"sparse": given}


def gradients() -> dict[str, float]:
    """Whatever `convert_to_tensor` takes counts as the dense tensor."""
    table = whole()
    kinds = {
        "array": table,
        "float64 array": table.astype(np.float64),
        "integers": table.astype(np.int64),
        "list": table.tolist(),
        "tuple": tuple(map(tuple, table.tolist())),
        "list of tensors": [tensor(row) for row in table],
        "tensor of integers": ops.cast(table, "int32"),
        "variable": variable(table),
        "one row for all": table[1],
        "number": 0.5,
        **sparse(),
    }
    dense = {"one row for all": np.broadcast_to(table[1], TABLE), "number": np.full(TABLE, 0.5)}
    found: dict[str, float] = {}
    for rule in ("SGD", "Adam", "Adafactor"):
        for kind, given in kinds.items():
            ends: list[list[Any]] = []
            for gradient in (given, tensor(dense.get(kind, table))):
                trained = variable(np.ones(TABLE))
                optimizer = getattr(isostep.keras, rule)(**RULES[rule], clipnorm=0.5)
                optimizer.build([trained])
                for _ in range(2):
                    optimizer.apply([gradient], [trained])
                optimizer.update_step(gradient, trained, 0.5)
                ends.append([array(trained)])
            found[f"{rule}, {kind}"] = worst(ends)
    return found


def compiled_rows() -> float:
    """The gradient of an embedding as rows, in a compiled step."""
    if BACKEND == "torch":
        return 0.0
    (given, *_), ends = sparse().values(), []
    for gradient in (given, tensor(whole())):
        trained = variable(np.ones(TABLE))
        optimizer = isostep.keras.Adam(0.5)
        optimizer.build([trained])
        ends.append([_compiled_step(optimizer, gradient, trained)])
    return worst(ends)


def _compiled_step(optimizer: Any, gradient: Any, trained: Any) -> Any:
    if BACKEND == "tensorflow":
        import tensorflow as tf

        tf.function(lambda given: optimizer.apply([given], [trained]))(gradient)
        return array(trained)
    import jax

    kept = [v.value for v in optimizer.variables]
    return np.array(jax.jit(optimizer.stateless_apply)(kept, [gradient], [trained.value])[0][0])


def twice() -> dict[str, Any]:
    """A variable that comes twice in one call is stepped twice."""
    found: dict[str, Any] = {}
    options = {"clipnorm": 0.5, "weight_decay": 0.125, "use_ema": True}
    accumulated = {"gradient_accumulation_steps": 2, "global_clipnorm": 0.5}
    for rule in RULES:
        for extra in (options, accumulated) if rule == "Adam" else (options,):
            ends: list[list[Any]] = []
            for classes in BOTH:
                a, b = variable(np.ones((2, 3)), "a"), variable(np.ones(3), "b")
                optimizer = getattr(classes, rule)(**{**RULES[rule], **extra})
                optimizer.build([a, b])
                random = np.random.default_rng(0)
                for _ in range(3):
                    grads = [tensor(random.normal(size=s)) for s in ((2, 3), 3, (2, 3))]
                    optimizer.apply_gradients(zip(grads, (a, b, a), strict=True))
                    optimizer.apply(grads[:2], [a, b])
                ends.append([array(a), array(b)])
            found[f"{rule} {len(extra)}"] = worst(ends)
    grouped, v = isostep.keras.SGD(0.5, groups=[Group("v", weight_decay=0.5)]), variable([1.0])
    grouped.build([v])
    refused = said(lambda: grouped.apply([tensor([1.0])] * 2, [v, v]))
    return found | {"refused": refused, "unchanged": float(v[0]) == 1.0}


def sums() -> dict[str, float]:
    """What is summed up for a variable that has no gradient in some of the calls of a step."""
    patterns = {"first": ["ab", "b", "ab"], "last": ["b", "ab", "ab"], "both": ["a", "b", "ab"]}
    found: dict[str, float] = {}
    for name, calls in patterns.items():
        ends: list[list[Any]] = []
        for classes in BOTH:
            known = {n: variable(np.ones(3), n) for n in "ab"}
            options = {"momentum": 0.5, "gradient_accumulation_steps": 2, "use_ema": True}
            optimizer = classes.SGD(0.125, **options)
            optimizer.build(list(known.values()))
            for count, named in enumerate(calls * 2):
                grads = [tensor(np.full(3, 1.0 + count)) for _ in named]
                optimizer.apply(grads, [known[n] for n in named])
            ends.append([array(v) for v in [*known.values(), *optimizer.variables]])
        found[name] = worst(ends)
    return found


def dtypes() -> list[str]:
    """Operations of array code whose result is of another dtype than their arguments."""
    xp, found = KerasNamespace(), list[str]()
    for dtype in ("float32", "float64") if BACKEND != "jax" else ("float32",):
        x = ops.convert_to_tensor(np.array([0.1, 0.7, np.nan]), dtype=dtype)
        for op in ("maximum", "minimum"):
            for other in (x[1], ops.convert_to_tensor(0.5, dtype=dtype)):
                result = xp.apply(op, [x, other])
                exact = array(result)[0] in (array(x)[0], array(other))
                if xp.dtype(result) != dtype or not exact or not np.isnan(array(result)[2]):
                    found.append(f"{op} of {dtype}: {result}")
    return found


def empty() -> dict[str, float]:
    """Variables without elements change nothing for the others."""
    shapes = [(0,), (0, 3), (3, 0), (2, 0, 3), (2, 2)]
    found: dict[str, float] = {}
    for rule, given in RULES.items():
        ends: list[list[Any]] = []
        for chosen in (shapes, shapes[-1:]):
            trained = [variable(np.ones(shape), f"v{k}") for k, shape in enumerate(chosen)]
            optimizer = getattr(isostep.keras, rule)(
                **{**given, "weight_decay": 0.125}, global_clipnorm=0.5, use_ema=True
            )
            for _ in range(2):
                optimizer.apply([tensor(np.full(s, 0.75)) for s in chosen], trained)
            ends.append([array(trained[-1])])
        found[rule] = worst(ends)
    return found


def rates() -> dict[str, Any]:
    """A group's factor follows the schedule; so does a number as its rate."""
    found: dict[str, Any] = {}
    for name, given in {"lr_ratio": {"lr_ratio": 0.125}, "rate": {"learning_rate": 0.125}}.items():
        a, b = variable([0.0], "a"), variable([0.0], "b")
        optimizer = isostep.keras.SGD(HALVING, groups=[Group("b", **given)])
        optimizer.build([a, b])
        for _ in range(3):
            optimizer.apply([tensor([1.0]), tensor([1.0])], [a, b])
        found[name] = float(b[0]) / float(a[0])
    return found


def excluded() -> list[list[float]]:
    """Of two variables of one path the excluded one alone does not decay."""
    ends: list[list[float]] = []
    for classes in BOTH:
        a, b = variable([1.0], "w"), variable([1.0], "w")
        optimizer = classes.AdamW(0.125, weight_decay=0.5)
        optimizer.exclude_from_weight_decay(var_list=[a])
        optimizer.apply([tensor([0.0]), tensor([0.0])], [a, b])
        ends.append([float(a[0]), float(b[0])])
    return ends


class Given:
    """A callable without arguments that gives a value."""

    def __init__(self, value: float) -> None:
        self.value = value

    def assign(self, value: float) -> None:
        self.value = value

    def __call__(self) -> float:
        return self.value


LIVE = [
    ("Adam", "beta_1", 0.75, 0.25),
    ("Adam", "epsilon", 0.125, 0.5),
    ("AdamW", "weight_decay", 0.125, 0.5),
    ("RMSprop", "rho", 0.75, 0.25),
    ("Adafactor", "beta_2_decay", -0.75, -0.5),
    ("Adafactor", "clip_threshold", 1.0, 0.25),
    ("SGD", "clipnorm", 0.5, 0.125),
    ("SGD", "global_clipnorm", 0.5, 0.125),
    ("SGD", "clipvalue", 0.5, 0.125),
]


def live() -> dict[str, float]:
    """Variables, tensors and callables without arguments are read at each step."""
    makes: dict[str, Callable[[float], Any]] = {
        "variable": lambda value: keras.Variable(value, dtype="float32", trainable=False),
        "callable": Given,
    }
    found: dict[str, float] = {}
    for rule, name, first, second in LIVE:
        expected = _changed(rule, name, first, second, None)
        for kind, make in makes.items():
            got = _changed(rule, name, first, second, make)
            found[f"{rule}, {name}, {kind}"] = worst([[expected], [got]])
        tensors = [_changed(rule, name, first, first, make) for make in (None, tensor)]
        found[f"{rule}, {name}, tensor"] = worst([[end] for end in tensors])
    return found


def _changed(rule: str, name: str, first: float, second: float, make: Any) -> Any:
    """The end of four steps, with another value of a hyperparameter from the third on."""
    held = first if make is None else make(first)
    optimizer = getattr(isostep.keras, rule)(**{"learning_rate": 0.125, name: held})
    trained = variable(np.arange(1.0, 7.0).reshape(2, 3))
    for step in range(4):
        if step == 2 and make is None:
            setattr(optimizer, name, second)
        elif step == 2 and second != first:
            held.assign(second)
        optimizer.apply([tensor([[1.0, 0.5, -2.0], [0.25, 3.0, 1.0]])], [trained])
    return array(trained)


@keras.saving.register_keras_serializable(package="mine")
class Mine(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of a user's own."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, step: Any) -> Any:
        return self.rate / (1.0 + ops.cast(step, "float32"))

    def get_config(self) -> dict[str, Any]:
        return {"rate": self.rate}


def configurations() -> list[Any]:
    """Schedules anywhere, variables and tensors: plain data that makes an equal optimizer."""
    optimizer = isostep.keras.AdamW(
        Mine(0.5),
        weight_decay=Mine(0.25),
        beta_1=keras.Variable(0.75, dtype="float32", trainable=False),
        beta_2=tensor(0.875),
        groups=[Group("v", learning_rate=Mine(0.125), beta_1=0.5), Group("w", lr_ratio=Mine(2.0))],
    )
    config = optimizer.get_config()
    again = type(optimizer).from_config(json.loads(json.dumps(config)))
    groups = [g.hyperparameters for g in again._extras.groups]
    kinds = [type(groups[0]["learning_rate"]).__name__, type(groups[1]["lr_ratio"]).__name__]
    return [again.get_config() == config, config["beta_1"], config["beta_2"], kinds]


def model(optimizer: Any) -> Any:
    made: Any = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    made.compile(optimizer=optimizer, loss="mse")
    return made


def states() -> dict[str, Any]:
    """A state that does not fit is refused; one that comes before the variables waits for them."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(16, 3)), random.normal(size=(16, 2))
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "state.weights.h5")
        first = model(keras.optimizers.Adam(0.125))
        first.fit(x, y, verbose=0)
        first.save_weights(path)
        late = model(isostep.keras.Adam(0.125))
        late.load_weights(path)
        for one in (first, late):
            one.fit(x, y, verbose=0)
        other = model(isostep.keras.RMSprop(0.125))
        other.optimizer.build(other.trainable_variables)
        refused = said(lambda: other.load_weights(path))
        iterations = int(other.optimizer.iterations)
        waiting = [_refusals(x, y, path, keras.optimizers.Adam, "RMSprop")]
        waiting.append(_refusals(x, y, path, keras.optimizers.SGD, "Adam"))
    ends = [[array(v) for v in one.trainable_variables] for one in (first, late)]
    weights = [array(v) for v in late.optimizer.variables]
    short = said(lambda: late.optimizer.set_weights(weights[:-1]))
    found = {"apart": worst(ends), "refused": refused, "iterations": iterations, "short": short}
    return found | {"waiting": waiting}


def _refusals(x: Any, y: Any, path: str, first: Any, second: str) -> list[str]:
    """What each fit says after the state of another class was loaded before there were variables
    for it."""
    saved = model(first(0.125))
    saved.fit(x, y, verbose=0)
    saved.save_weights(path)
    late = model(getattr(isostep.keras, second)(0.125))
    late.load_weights(path)
    return [said(lambda: late.fit(x, y, verbose=0)) for _ in range(2)]


def messages() -> dict[str, str]:
    v = variable([1.0, 2.0])
    built = isostep.keras.Adam(0.5)
    built.build([v])
    return {
        "before build": said(lambda: isostep.keras.Adam().update_step(tensor([1.0]), v, 0.5)),
        "unknown": said(lambda: built.update_step(tensor([1.0]), variable([1.0], "other"), 0.5)),
        "shape": said(lambda: built.apply([tensor([1.0, 2.0, 3.0])], [v])),
        "unchanged": str(array(v).tolist()),
    }


LOOKS = (
    gradients,
    compiled_rows,
    twice,
    sums,
    dtypes,
    empty,
    rates,
    excluded,
    live,
    configurations,
    states,
    messages,
)

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps({look.__name__: look() for look in LOOKS}))
