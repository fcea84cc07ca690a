"""The oracle's table on aarch64: `make test-arm`.

On another Linux machine kernels are compiled and run under QEMU's user emulation, by Debian's
CPython for arm64 and the packages' own arm64 wheels, which are unpacked to `.arm` and installed
nowhere. It needs `qemu-user`, `apt` and `dpkg` (Debian, Ubuntu); on an aarch64 machine nothing.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from .test_cache import COLD, STEP, WARM

ROOT = Path(__file__).parent.parent
ARM = ROOT / ".arm"
SYSTEM, PACKAGES, KERNELS = ARM / "system", ARM / "packages", ARM / "kernels"
REQUIREMENTS = ["numpy", "numba", "ml_dtypes", "pytest", "hypothesis"]
PLATFORMS = ["manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64"]
TESTS = ["tests/test_against_oracle.py", "tests/test_processors.py"]
VERSIONS = """
import platform, numba, numpy
print(platform.machine(), platform.python_version(), "NumPy", numpy.__version__,
      "Numba", numba.__version__)
"""
# Processes of their own are not emulated.
CHOICE = "test_against_oracle or half_precision or features or architectures"


def main(*arguments: str) -> None:
    """Run the tests, with further arguments of pytest."""
    python = [sys.executable] if platform.machine() in ("aarch64", "arm64") else emulated()
    shutil.rmtree(KERNELS, ignore_errors=True)
    run(python, "-c", VERSIONS)
    for name, expected in (("cold", COLD), ("warm", WARM)):
        found = json.loads(run(python, "-c", STEP).splitlines()[-1])
        if found != expected:
            sys.exit(f"{name} start: expected {expected}, found {found}")
        print(f"{name} start: {found}", flush=True)
    options = ["-p", "no:cacheprovider", *(arguments or ["-k", CHOICE])]
    sys.exit(subprocess.run([*python, "-m", "pytest", *options, *TESTS], env=env()).returncode)


def run(python: list[str], *arguments: str) -> str:
    done = subprocess.run([*python, *arguments], env=env(), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"exit code {done.returncode}\n{done.stdout}{done.stderr}")
    print(done.stdout, end="", flush=True)
    return done.stdout


def env() -> dict[str, str]:
    path = os.pathsep.join(map(str, (ROOT, PACKAGES)))
    more = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "ISOSTEP_CACHE_DIR": str(KERNELS)}
    return os.environ | more


def emulated() -> list[str]:
    """The command of a CPython for aarch64 under QEMU."""
    names = ("qemu-aarch64", "qemu-aarch64-static")
    qemu = next(filter(None, map(shutil.which, names)), None)
    lacking = [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]
    if sys.platform != "linux" or qemu is None or lacking:
        sys.exit("make test-arm needs Debian or Ubuntu with qemu-user: apt-get install qemu-user")
    if not (ARM / "ready").exists():
        shutil.rmtree(ARM, ignore_errors=True)
        interpreter = debian()
        packages(interpreter.name.removeprefix("python"))
        (ARM / "ready").write_text(str(interpreter), encoding="utf-8")
    # By its own loader, and not by QEMU's option -L, under which whoever opens "/" is in SYSTEM.
    loader = str(SYSTEM / "lib" / "ld-linux-aarch64.so.1")
    libraries = [str(SYSTEM / folder / "aarch64-linux-gnu") for folder in ("lib", "usr/lib")]
    interpreter = (ARM / "ready").read_text(encoding="utf-8")
    return [qemu, loader, "--library-path", ":".join(libraries), interpreter]


def debian() -> Path:
    """Unpack Debian's CPython for arm64, with what it is linked to."""
    state, cache = ARM / "apt" / "state", ARM / "apt" / "cache"
    (state / "lists" / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    (state / "status").touch()
    configuration = ARM / "apt" / "apt.conf"
    configuration.write_text(
        f'Dir::State "{state}";\nDir::State::status "{state / "status"}";\nDir::Cache "{cache}";\n'
        'APT::Architecture "arm64";\nAPT::Architectures {"arm64";};\n'
        'APT::Sandbox::User "root";\nDebug::NoLocking "true";\n',
        encoding="utf-8",
    )
    apt = {"APT_CONFIG": str(configuration)}
    quiet = ["apt-get", "--quiet", "--quiet"]
    subprocess.run([*quiet, "update"], env=os.environ | apt, check=True)
    wanted = ["python3", "libstdc++6", "libgomp1"]
    options = ["install", "--download-only", "--yes", "--no-install-recommends"]
    subprocess.run([*quiet, *options, *wanted], env=os.environ | apt, check=True)
    for archive in sorted((cache / "archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(archive), str(SYSTEM)], check=True)
    found = [p for p in (SYSTEM / "usr" / "bin").iterdir() if re.fullmatch(r"python3\.\d+", p.name)]
    return found[0]


def packages(version: str) -> None:
    """Unpack the wheels for a version of Python on aarch64."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    python = ["--implementation", "cp", "--python-version", version, "--only-binary=:all:"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(PACKAGES)]
    versions = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, *platforms, *python, *versions, *REQUIREMENTS], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
