"""The oldest versions that `pyproject.toml` declares: `make test-oldest LANES="numpy jax"`.

Each lane is an environment of its own in `.oldest`, with exactly these versions, and runs
`short.py` there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The extras of each lane. Keras needs a backend.
LANES = {
    "numpy": ["bfloat16"],
    "torch": ["torch"],
    "jax": ["jax"],
    "keras": ["keras", "jax"],
    "tf_keras": ["tf_keras"],
    "paddle": ["paddle"],
}
TESTS = {"numpy": "test_numpy or test_bfloat16", "keras": "test_keras", "tf_keras": "test_tf_keras"}
ENVIRONMENT = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}


def oldest(lane: str) -> list[str]:
    """The versions of a lane, pinned.

    Raises:
        ValueError: a requirement declares none.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(each for extra in LANES[lane] for each in extras[extra])]
    found: dict[str, str] = {}
    for requirement in wanted:
        declared = re.fullmatch(r"([\w-]+)>=([\w.]+)", requirement)
        if declared is None:
            raise ValueError(f"{requirement}: declare the oldest version that is tested")
        found[declared[1]] = f"{declared[1]}=={declared[2]}"
    return list(found.values())


def run(lane: str) -> bool:
    """Whether the tests of a lane pass; its environment is made where it is not there."""
    folder, versions = ROOT / ".oldest" / lane, oldest(lane)
    python, ready = folder / "bin" / "python", folder / "versions"
    if not ready.exists() or ready.read_text(encoding="utf-8") != " ".join(versions):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *versions, "pytest"], check=True)
        ready.write_text(" ".join(versions), encoding="utf-8")
    print(f"{lane}: {' '.join(versions)}", flush=True)
    options = ["-p", "no:cacheprovider", "-W", "ignore", "tests/short.py"]
    chosen = ["-k", TESTS.get(lane, f"test_{lane}")]
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    command = [str(python), "-m", "pytest", *options, *chosen]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode == 0


def main(*lanes: str) -> None:
    failed = [lane for lane in lanes or LANES if not run(lane)]
    if failed:
        sys.exit(f"failed: {' '.join(failed)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
