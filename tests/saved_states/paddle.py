"""States of paddle.optimizer and of isostep.paddle: prints how far training ends from Paddle's own,
in dynamic graphs and in programs."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
from paddle.base import core
from paddle.base.unique_name import UniqueNameGenerator
from paddle.pir.core import set_state_dict

import isostep.paddle
from tests.paddle_frontend.twins import RULES

from .exchange import Way, differences, gradient, tell

SHAPES = ((1,), (5,), (4, 6), (6, 2, 3, 3))
STATELESS = ("SGD",)
CLASSES = {"theirs": paddle.optimizer, "ours": isostep.paddle}


def start_values() -> list[Any]:
    random = np.random.default_rng(0)
    return [random.normal(size=shape) for shape in SHAPES]


class Training:
    """Parameters in two groups, in a dynamic graph."""

    def __init__(self, who: str, rule: str) -> None:
        self._names = UniqueNameGenerator()  # as in a process of its own
        with paddle.utils.unique_name.guard(self._names):
            self.params = [
                paddle.create_parameter(list(shape), "float64", attr=_starting_at(value))
                for shape, value in zip(SHAPES, start_values(), strict=True)
            ]
            groups = [
                {"params": self.params[:2]},
                {"params": self.params[2:], "learning_rate": 0.5},
            ]
            self.optimizer = getattr(CLASSES[who], rule)(parameters=groups, **RULES[rule])

    def run(self, steps: range) -> None:
        for step in steps:
            for k, p in enumerate(self.params):
                p.grad = paddle.to_tensor(gradient(step, k, p.shape))
            with paddle.utils.unique_name.guard(self._names):
                self.optimizer.step()

    def values(self) -> list[Any]:
        return [p.numpy() for p in self.params]

    def take(self, values: list[Any]) -> None:
        for p, value in zip(self.params, values, strict=True):
            p.set_value(value)


def _starting_at(value: Any) -> Any:
    start = paddle.nn.initializer.Assign(paddle.to_tensor(value))
    return paddle.ParamAttr(initializer=start)


def copied(training: Training) -> Any:
    found: dict[str, Any] = {}
    for name, value in training.optimizer.state_dict().items():
        found[name] = value.clone() if isinstance(value, paddle.Tensor) else copy.deepcopy(value)
        if isinstance(value, paddle.Tensor):
            found[name].name = name  # which Paddle's loading looks at
    return found


def into_file(save: Callable[[Any, str], None]) -> Callable[[Training], Any]:
    def written(training: Training) -> Any:
        folder = tempfile.TemporaryDirectory()
        save(training, f"{folder.name}/model")
        return folder

    return written


def from_file(**how: Any) -> Callable[[Training, Any], None]:
    def read(training: Training, folder: Any) -> None:
        training.optimizer.set_state_dict(paddle.load(f"{folder.name}/model.pdopt", **how))

    return read


_save = into_file(lambda t, path: paddle.save(t.optimizer.state_dict(), f"{path}.pdopt"))
WAYS = {
    "state_dict": Way(copied, lambda t, saved: t.optimizer.set_state_dict(saved)),
    ".pdopt": Way(_save, from_file()),
    ".pdopt as NumPy": Way(_save, from_file(return_numpy=True)),
}


class Program:
    """The same in a program, with a loss whose gradients are what is fed."""

    def __init__(self, who: str, rule: str) -> None:
        self.main, self._start = paddle.static.Program(), paddle.static.Program()
        guard = paddle.static.program_guard(self.main, self._start)
        with guard, paddle.utils.unique_name.guard():
            loss: Any = 0.0
            for k, (shape, value) in enumerate(zip(SHAPES, start_values(), strict=True)):
                p = paddle.static.create_parameter(
                    list(shape),
                    "float64",
                    name=f"p{k}",
                    default_initializer=paddle.nn.initializer.Assign(value),
                )
                loss = loss + (p * paddle.static.data(f"g{k}", list(shape), "float64")).sum()
            getattr(CLASSES[who], rule)(**RULES[rule]).minimize(loss)
        self.executor, self.scope = paddle.static.Executor(), paddle.static.Scope()
        self._in_scope(lambda: self.executor.run(self._start))

    def _in_scope(self, do: Callable[[], Any]) -> Any:
        with paddle.static.scope_guard(self.scope):
            return do()

    def run(self, steps: range) -> None:
        for step in steps:
            feed = {f"g{k}": gradient(step, k, shape) for k, shape in enumerate(SHAPES)}
            self._in_scope(lambda feed=feed: self.executor.run(self.main, feed=feed))

    def values(self) -> list[Any]:
        names = range(len(SHAPES))
        return [np.array(self.scope.var(f"p{k}").get_tensor()) for k in names]

    def take(self, values: list[Any]) -> None:
        for k, value in enumerate(values):
            self.scope.var(f"p{k}").get_tensor().set(value, paddle.CPUPlace())

    def save(self, path: str) -> None:
        self._in_scope(lambda: paddle.static.save(self.main, path))

    def load(self, path: str) -> None:
        self._in_scope(lambda: paddle.static.load(self.main, path, self.executor))

    def state(self) -> dict[str, Any]:
        state = self._in_scope(lambda: self.main.state_dict("opt", self.scope))
        return {name: np.array(tensor) for name, tensor in state.items()}

    def set_state(self, arrays: dict[str, Any]) -> None:
        state = {name: core.DenseTensor() for name in arrays}
        for name, array in arrays.items():
            state[name].set(array, paddle.CPUPlace())
        self._in_scope(lambda: set_state_dict(self.main, state, self.scope))


IN_PROGRAMS = {
    "paddle.static.save": Way(
        into_file(lambda t, path: t.save(path)),
        lambda t, folder: t.load(f"{folder.name}/model"),
    ),
    "program.state_dict": Way(lambda t: t.state(), lambda t, state: t.set_state(state)),
}


if __name__ == "__main__":
    found = differences(RULES, Training, WAYS, STATELESS)
    paddle.enable_static()
    of_programs = differences(RULES, Program, IN_PROGRAMS, STATELESS)
    tell(found | {f"in a program, {case}": far for case, far in of_programs.items()})
