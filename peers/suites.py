"""The suites: which files of which framework, where they are, and how they are run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

from peers.places.tf_keras import installed

APART = Path(sys.prefix) / "peers"
"""Packages that the environment itself must not have, since they bring their own torch."""
DEFAULT_LIMIT = 300.0
"""Seconds that one test may take."""


@dataclass(frozen=True)
class Suite:
    """Tests of one framework.

    Args:
        name: as `--only` has it.
        title: as the page has it.
        peer: the module of `peers.places`.
        files: of the tests, as patterns below the root.
        checkout: folder of the framework's repository below the folder of checkouts; empty: the
            installed package ships its tests.
        package: the distribution whose version is told; its import name, where tests ship with it.
        apart: whether the package, and what it needs, are installed in a folder of their own,
            `peers` in the environment.
        helpers: folder below the root with modules that the tests import.
        convert: makes of a test's source what fits the installed package; its copy is run.
        environment: variables that the process needs.
        arguments: to pytest.
        each_file_apart: a process for each file, for tests that change their process.
        limit: seconds that one test may take.
    """

    name: str
    title: str
    peer: str
    files: tuple[str, ...]
    package: str
    checkout: str = ""
    apart: bool = False
    helpers: str = ""
    convert: Callable[[str], str] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    each_file_apart: bool = False
    limit: float = DEFAULT_LIMIT

    @property
    def version(self) -> str:
        """The installed version of the framework."""
        path = [str(APART)] if self.apart else sys.path
        for found in distributions(name=self.package, path=path):
            return found.version
        place = f" in {APART}" if self.apart else ""
        raise FileNotFoundError(f"{self.package} is not installed{place}: run make peers")

    @cached_property
    def _installed_in(self) -> Path:
        found = find_spec(self.package)
        if found is None or found.origin is None:
            raise FileNotFoundError(f"{self.package} is not installed")
        return Path(found.origin).resolve().parent.parent

    def root(self, checkouts: Path | None) -> Path:
        """The folder that the ids of tests begin at.

        Raises:
            FileNotFoundError: there is no such checkout, or the package is not installed.
        """
        if not self.checkout:
            return self._installed_in
        if checkouts is None:
            raise FileNotFoundError(f"needs PEERS=folder with {self.checkout}/{self.files[0]}")
        root = (checkouts / self.checkout).resolve()
        if not root.is_dir():
            raise FileNotFoundError(f"{checkouts / self.checkout} is no folder")
        return root

    def paths(self, checkouts: Path | None) -> list[str]:
        """The files, below the root, in order.

        Raises:
            FileNotFoundError: there are none, or there is no checkout.
        """
        root = self.root(checkouts)
        found = [p.relative_to(root).as_posix() for f in self.files for p in sorted(root.glob(f))]
        if not found:
            raise FileNotFoundError(f"{root} has none of {', '.join(self.files)}")
        return list(dict.fromkeys(found))

    def source(self, checkouts: Path | None) -> str:
        """Which state of its repository a checkout is: what its `source.txt` says, else git; empty
        where the package ships its tests, or nothing is known."""
        if not self.checkout:
            return ""
        root = self.root(checkouts)
        stated = root / "source.txt"
        if stated.exists():
            return stated.read_text().strip()
        asked = ["git", "-C", str(root), "describe", "--tags", "--always"]
        found = subprocess.run(asked, capture_output=True, text=True, check=False)
        return found.stdout.strip()

    def absent(self, checkouts: Path | None) -> list[str]:
        """Patterns that no file matches: frameworks rename and remove tests."""
        root = self.root(checkouts)
        return [pattern for pattern in self.files if not any(root.glob(pattern))]


def _keras(backend: str, title: str) -> Suite:
    files = ["keras/src/optimizers/**/*_test.py"]
    if backend == "tensorflow":
        files.append("keras/src/backend/tensorflow/optimizer_distribute_test.py")
    return Suite(
        name=f"keras-{backend}",
        title=f"Keras on {title}",
        peer="keras",
        files=tuple(files),
        package="keras",
        environment={"KERAS_BACKEND": backend},
    )


def _tf_keras(part: str, title: str, *files: str) -> Suite:
    return Suite(
        name=f"tf_keras-{part}",
        title=f"tf_keras: {title}",
        peer="tf_keras",
        files=tuple(f"tf_keras/{file}" for file in files),
        package="tf_keras",
        checkout="tf-keras",
        convert=installed,
        each_file_apart=True,
        limit=90,
    )


def _torch(part: str, title: str, *files: str) -> Suite:
    return Suite(
        name=f"torch-{part}",
        title=f"PyTorch: {title}",
        peer="torch",
        files=tuple(f"test/{file}" for file in files),
        package="torch",
        checkout="pytorch",
        each_file_apart=True,
    )


_ALL = (
    Suite(
        name="optax",
        title="optax",
        peer="optax",
        files=(
            "optax/_src/*_test.py",
            "optax/transforms/*_test.py",
            "optax/tree_utils/*_test.py",
            "optax/contrib/*_test.py",
        ),
        package="optax",
    ),
    _keras("torch", "PyTorch"),
    _keras("jax", "JAX"),
    _keras("tensorflow", "TensorFlow"),
    _torch("optim", "optimizers", "test_optim.py"),
    _torch(
        "schedules",
        "schedulers and averages",
        "optim/test_lrscheduler.py",
        "optim/test_swa_utils.py",
    ),
    _torch(
        "distributed",
        "distributed optimizers",
        "distributed/optim/test_named_optimizer.py",
        "distributed/optim/test_zero_redundancy_optimizer.py",
        "distributed/optim/test_apply_optimizer_in_backward.py",
    ),
    _torch("compiled", "compiled optimizers", "dynamo/test_optimizers.py"),
    Suite(
        name="timm",
        title="timm",
        peer="timm",
        files=("tests/test_optim.py",),
        package="timm",
        checkout="pytorch-image-models",
        apart=True,
        arguments=("--import-mode=importlib",),  # else tests import the checkout's timm
    ),
    _tf_keras("optimizers", "optimizers, strategies", "optimizers/optimizer_test.py"),
    _tf_keras("dtensor", "DTensor", "dtensor/optimizers_test.py"),
    _tf_keras("loss-scale", "loss scaling", "mixed_precision/loss_scale_optimizer_test.py"),
    Suite(
        name="paddle",
        title="Paddle",
        peer="paddle",
        files=tuple(
            f"test/legacy_test/test_{name}.py"
            for name in (
                "adadelta_op",
                "adagrad_op*",
                "adam_op",
                "adam_optimizer_fp32_fp64",
                "adamw_op",
                "imperative_optimizer*",
                "momentum_op",
                "optimizer*",
                "rmsprop_op",
                "sgd_op*",
            )
        ),
        package="paddlepaddle",
        checkout="Paddle",
        helpers="test/legacy_test",
        each_file_apart=True,
    ),
)
SUITES = {suite.name: suite for suite in _ALL}
"""All suites by name, in the order in which they run."""
