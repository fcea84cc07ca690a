"""What a race trains on: the `Task` protocol and the loader of `my_task.py:task`.

A task owns the model, the data and the gradients; it knows nothing of optimizers. It may compute
with any library, as long as parameters and gradients are NumPy arrays.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from isostep.cli.race.errors import RaceError
from isostep.cli.race.fingerprint import json_fingerprint, source_fingerprint

Params = dict[str, np.ndarray]
"""Parameters by name; an optimizer updates the arrays in place."""

DIGITS = "digits"
"""The name of the task that comes with isostep."""


class Task(Protocol):
    """One training problem, the same for every optimizer.

    An instance of a class, a dataclass of functions or a module can be a task. Equal seeds must
    give equal starts and equal batches; that is what makes a race fair and resumable.

    A task may also carry `config`, a mapping that JSON can hold, of whatever else determines its
    numbers (layer sizes, batch size): runs of another `config` are never taken for its own.
    """

    @property
    def name(self) -> str:
        """Short name, shown in the tables and part of the key of each run."""
        ...

    def initial_parameters(self, seed: int) -> Params:
        """Return freshly made parameters by name; `seed` >= 0 determines them."""
        ...

    def batches(self, seed: int, steps: int) -> Iterable[Any]:
        """Yield at least `steps` minibatches, of any type; `seed` determines them."""
        ...

    def loss_and_gradients(
        self, params: Params, batch: Any
    ) -> tuple[float, Mapping[str, np.ndarray]]:
        """Return the mean loss over `batch` and its gradient for every name in `params`."""
        ...

    def validate(self, params: Params) -> Mapping[str, float]:
        """Return `{"loss": ...}` on held-out data, with `"accuracy"` in 0..1 where there is one."""
        ...


METHODS = ("initial_parameters", "batches", "loss_and_gradients", "validate")


def load_task(spec: str) -> Task:
    """Return the task that `spec` names.

    Args:
        spec: `digits`, or `FILE.py:NAME` or `package.module:NAME`, where NAME is a task, or a class
            or function without arguments that makes one.

    Raises:
        RaceError: no such file, module or name, or the object is not a task; says what it lacks.
    """
    if spec == DIGITS:
        from isostep.cli.race.digits import Digits

        return Digits()
    place, separator, name = spec.rpartition(":")
    if not separator or not place or not name.isidentifier():
        raise RaceError(
            f"task {spec!r}: expected '{DIGITS}', or FILE.py:NAME such as my_task.py:task"
        )
    module = load_module(place)
    if not hasattr(module, name):
        public = sorted(key for key in vars(module) if not key.startswith("_"))
        raise RaceError(f"task {spec!r}: {place} has no {name!r}; it has {', '.join(public)}")
    return checked_task(getattr(module, name), spec)


def checked_task(candidate: Any, spec: str) -> Task:
    """Return `candidate`, called first if it is a class or a function, once it proves a task.

    Raises:
        RaceError: says which members are missing, are not functions, or cannot be stored as JSON.
    """
    is_maker = isinstance(candidate, type) or not hasattr(candidate, METHODS[0])
    task: Any = candidate() if is_maker and callable(candidate) else candidate
    lacking = [method for method in METHODS if not callable(getattr(task, method, None))]
    if not isinstance(getattr(task, "name", None), str):
        lacking.insert(0, "name (a string)")
    if lacking:
        raise RaceError(
            f"task {spec!r} is {type(task).__name__}, which is no task: it lacks "
            f"{', '.join(lacking)}. A task has name, {', '.join(METHODS)}; "
            "see isostep.cli.race.task.Task"
        )
    return task


def task_identity(task: Task) -> dict[str, Any]:
    """Return what determines a task's numbers: its name, config and source text, for run keys.

    Raises:
        RaceError: its `config` cannot be stored as JSON.
    """
    config = getattr(task, "config", {})
    try:
        json_fingerprint(dict(config))
    except (TypeError, ValueError) as error:
        raise RaceError(
            f"task {task.name!r}: config must be a mapping that JSON can hold ({error})"
        ) from None
    source = source_fingerprint(*(getattr(task, method) for method in METHODS))
    return {"name": task.name, "config": dict(config), "source": source}


def load_module(place: str) -> ModuleType:
    """Import a Python file by its path, or a module by its dotted name.

    The file's folder is put on `sys.path`, as Python does for a script, so that it may import its
    neighbours. Exceptions raised by the code itself pass through with their traceback.

    Raises:
        RaceError: there is no such file or module.
    """
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if not f"{place}.".startswith(f"{error.name}."):
                raise  # it is there, but what it imports is not
            raise RaceError(f"no module named {error.name!r}; for a file, write its .py") from None
    path = Path(place)
    if not path.is_file():
        raise RaceError(f"no file {place!r} (looked in {Path.cwd()})")
    path = path.resolve()
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    # Under a name of its own, so that it takes no other module's place; once, so that a file that
    # registers a rule can be both loaded and raced.
    name = f"isostep race {path}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
