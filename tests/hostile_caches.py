"""Caches that somebody else could have written, and caches that fail: two tables."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import llvmlite.binding as llvm
import pytest

from isostep.compile import cache

from .subprocesses import ROOT

SOMEBODY = 12345
"""A user whom the system does not know."""
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0

# Where a test may not give files away, `os` says that it has.
_PRETEND = f"""
import os
def _foreign(real):
    def asked(*args, **more):
        found = real(*args, **more)
        if f"{{found.st_dev}}:{{found.st_ino}}" in os.environ.get("FOREIGN", "").split():
            values = list(found)
            values[4] = {SOMEBODY}
            return os.stat_result(values)
        return found
    return asked
os.stat, os.fstat = _foreign(os.stat), _foreign(os.fstat)
"""


@dataclass
class Setup:
    """What a process finds.

    Args:
        environment: variables.
        before: Python that it runs first.
        meanwhile: processes that run beside it.
    """

    environment: dict[str, str]
    before: str = ""
    meanwhile: list[subprocess.Popen[str]] = field(default_factory=list)

    def give_away(self, path: Path) -> None:
        """Have a file, a directory or a link belong to somebody else."""
        if IS_ROOT:
            os.chown(path, SOMEBODY, SOMEBODY, follow_symlinks=False)
        else:
            status = path.lstat()
            known = self.environment.get("FOREIGN", "")
            self.environment["FOREIGN"] = f"{known} {status.st_dev}:{status.st_ino}"
            self.before = _PRETEND


def chosen(directory: Path) -> Setup:
    return Setup({"ISOSTEP_CACHE_DIR": str(directory)})


def kernels(directory: Path) -> list[Path]:
    """The entries that step; the others look at the headers of arrays."""
    found = sorted(directory.glob("*.kernel"))
    return [path for path in found if "def pass_0" in path.with_suffix(".py").read_text()]


def write(path: Path, content: bytes) -> None:
    """An entry in good order."""
    path.write_bytes(cache._MAGIC + cache._digest(path.stem, content) + content)


def poison(directory: Path, symbol: str = "isostep_{name}_{function}") -> None:
    """Put other code in good order under the name of each kernel: functions that do nothing, so
    that a step which runs them gives wrong numbers."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    for path in kernels(directory):
        functions = re.findall(r"^def (\w+)\(", path.with_suffix(".py").read_text(), re.MULTILINE)
        text = "\n".join(
            f"define void @{symbol.format(name=path.stem, function=function)}"
            "(ptr %a, ptr %b, ptr %c, ptr %d) { ret void }"
            for function in functions
        )
        write(path, machine.emit_object(llvm.parse_assembly(text)))


# -- attacks ---------------------------------------------------------------------------------------
# Each gets a trusted directory of poisoned entries, and makes it one that others may have written.

Attack = Callable[[Path], Setup]
ATTACKS: dict[str, Attack] = {}
QUIET = set[str]()
"""Attacks that look like damage, and are not told of."""


def attack(function: Attack) -> Attack:
    ATTACKS[function.__name__] = function
    return function


@attack
def entries_of_another_user(directory: Path) -> Setup:
    setup = chosen(directory)
    for path in kernels(directory):
        setup.give_away(path)
    return setup


@attack
def directory_of_another_user(directory: Path) -> Setup:
    setup = chosen(directory)
    setup.give_away(directory)
    return setup


@attack
def everything_of_another_user(directory: Path) -> Setup:
    setup = chosen(directory)
    for path in [directory, *directory.iterdir()]:
        setup.give_away(path)
    return setup


@attack
def parent_of_another_user(directory: Path) -> Setup:
    setup = chosen(directory)
    setup.give_away(directory.parent)
    return setup


@attack
def entries_that_the_group_writes(directory: Path) -> Setup:
    for path in kernels(directory):
        path.chmod(0o664)
    return chosen(directory)


@attack
def entries_that_everybody_writes(directory: Path) -> Setup:
    for path in kernels(directory):
        path.chmod(0o646)
    return chosen(directory)


@attack
def directory_that_the_group_writes(directory: Path) -> Setup:
    directory.chmod(0o775)
    return chosen(directory)


@attack
def directory_that_everybody_writes(directory: Path) -> Setup:
    directory.chmod(0o777)
    return chosen(directory)


@attack
def directory_that_everybody_writes_with_the_sticky_bit(directory: Path) -> Setup:
    directory.chmod(0o1777)
    return chosen(directory)


@attack
def parent_that_everybody_writes(directory: Path) -> Setup:
    directory.parent.chmod(0o777)
    return chosen(directory)


@attack
def parent_that_the_group_writes(directory: Path) -> Setup:
    directory.parent.chmod(0o775)
    return chosen(directory)


@attack
def entries_that_are_links(directory: Path) -> Setup:
    elsewhere = directory.parent / "elsewhere"
    elsewhere.mkdir(0o755)
    for path in kernels(directory):
        path.rename(elsewhere / path.name)
        path.symlink_to(elsewhere / path.name)
    return chosen(directory)


@attack
def link_to_a_directory_that_everybody_writes(directory: Path) -> Setup:
    link = directory.parent / "link"
    link.symlink_to(directory)
    directory.chmod(0o777)
    return chosen(link)


@attack
def link_of_another_user(directory: Path) -> Setup:
    link = directory.parent / "link"
    link.symlink_to(directory)
    setup = chosen(link)
    setup.give_away(link)
    return setup


@attack
def link_by_way_of_a_directory_that_everybody_writes(directory: Path) -> Setup:
    way = directory.parent / "way"
    way.mkdir()
    (way / "link").symlink_to(directory)
    way.chmod(0o777)
    return chosen(way / "link")


@attack
def way_back_from_a_directory_that_everybody_writes(directory: Path) -> Setup:
    way = directory.parent / "way"
    way.mkdir()
    way.chmod(0o777)
    return chosen(way / ".." / directory.name)


@attack
def hard_links_of_another_users_files(directory: Path) -> Setup:
    elsewhere = directory.parent / "elsewhere"
    elsewhere.mkdir()
    setup = chosen(directory)
    for path in kernels(directory):
        path.rename(elsewhere / path.name)
        setup.give_away(elsewhere / path.name)
        os.link(elsewhere / path.name, path)
    return setup


@attack
def usual_directory_that_everybody_writes(directory: Path) -> Setup:
    home = directory.parent / "home"
    (home / ".cache").mkdir(parents=True)
    directory.rename(home / ".cache" / "isostep")
    (home / ".cache").chmod(0o777)
    return Setup({"HOME": str(home), "XDG_CACHE_HOME": "", "ISOSTEP_CACHE_DIR": ""})


@attack
def directory_to_read_that_everybody_writes(directory: Path) -> Setup:
    directory.chmod(0o777)
    own = directory.parent / "own"
    return Setup({"ISOSTEP_CACHE_DIR": str(own), "ISOSTEP_CACHE_PATH": str(directory)})


@attack
def private_directory_of_another_user(directory: Path) -> Setup:
    """There before the user came."""
    setup = Setup(homeless(directory) | {"HOME": "relative"})
    there = Path(setup.environment["TMPDIR"]) / private_name()
    directory.rename(there)
    setup.give_away(there)
    return setup


@attack
def fifos(directory: Path) -> Setup:
    for path in kernels(directory):
        path.unlink()
        os.mkfifo(path)
    return chosen(directory)


@attack
def devices(directory: Path) -> Setup:
    for path in kernels(directory):
        path.unlink()
        try:
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # zeros without end
        except PermissionError:
            pytest.skip("only root makes devices")
    return chosen(directory)


def quiet(function: Attack) -> Attack:
    QUIET.add(function.__name__)
    return attack(function)


@quiet
def entries_under_another_name(directory: Path) -> Setup:
    """Each over the next."""
    paths = sorted(directory.glob("*.kernel"))
    texts = [path.read_bytes() for path in paths]
    for path, text in zip(paths, texts[1:] + texts[:1], strict=True):
        path.write_bytes(text)
    return chosen(directory)


@quiet
def code_of_other_functions(directory: Path) -> Setup:
    """In good order, digest and all."""
    poison(directory, "another_{name}_{function}")
    return chosen(directory)


@quiet
def code_of_some_of_the_functions(directory: Path) -> Setup:
    poison(directory, "isostep_{name}_{function}_and_more")
    return chosen(directory)


@quiet
def half_of_the_code(directory: Path) -> Setup:
    for path in kernels(directory):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    return chosen(directory)


@quiet
def one_bit_of_the_code(directory: Path) -> Setup:
    for path in kernels(directory):
        content = bytearray(path.read_bytes())
        content[-len(content) // 3] ^= 4
        path.write_bytes(content)
    return chosen(directory)


@quiet
def entries_of_another_version(directory: Path) -> Setup:
    for path in kernels(directory):
        path.write_bytes(b"isostep kernel 1\n" + path.read_bytes()[len(cache._MAGIC) :])
    return chosen(directory)


# -- faults ----------------------------------------------------------------------------------------
# Each gets a directory that may not be there yet, its parent being there.

FAULTS: dict[str, Attack] = {}


def fault(function: Attack) -> Attack:
    FAULTS[function.__name__] = function
    return function


def failing(directory: Path, function: str, error: str) -> Setup:
    """A call of the system fails."""
    module = function.partition(".")[0]
    return Setup(
        {"ISOSTEP_CACHE_DIR": str(directory)},
        f"import errno, {module}\n"
        f"def fail(*args, **more):\n    raise OSError(errno.{error}, 'simulated')\n"
        f"{function} = fail\n",
    )


@fault
def a_file_in_the_way(directory: Path) -> Setup:
    directory.write_text("in the way")
    return chosen(directory)


@fault
def a_file_on_the_way(directory: Path) -> Setup:
    directory.write_text("in the way")
    return chosen(directory / "a" / "b")


@fault
def a_link_to_nowhere(directory: Path) -> Setup:
    directory.symlink_to(directory.parent / "nowhere")
    return chosen(directory / "cache")


@fault
def a_link_to_itself(directory: Path) -> Setup:
    directory.symlink_to(directory)
    return chosen(directory)


@fault
def a_name_that_is_too_long(directory: Path) -> Setup:
    return chosen(directory / ("x" * 300))


@fault
def a_read_only_directory(directory: Path) -> Setup:
    directory.mkdir(0o555)
    return as_somebody(chosen(directory)) if IS_ROOT else chosen(directory)


@fault
def a_read_only_file_system(directory: Path) -> Setup:
    return failing(directory, "os.mkdir", "EROFS")


@fault
def a_full_disk(directory: Path) -> Setup:
    return failing(directory, "os.replace", "ENOSPC")


@fault
def a_disk_that_is_full_after_some_bytes(directory: Path) -> Setup:
    before = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    return Setup({"ISOSTEP_CACHE_DIR": str(directory)}, before)


@fault
def a_file_that_is_open_elsewhere(directory: Path) -> Setup:
    return failing(directory, "os.replace", "EACCES")


@fault
def a_directory_that_cannot_be_read(directory: Path) -> Setup:
    return failing(directory, "os.listdir", "EIO")


@fault
def entries_that_cannot_be_read(directory: Path) -> Setup:
    return failing(directory, "os.fstat", "EIO")


@fault
def no_room_for_file_descriptors(directory: Path) -> Setup:
    return failing(directory, "os.open", "EMFILE")


@fault
def locks_that_are_refused(directory: Path) -> Setup:
    return failing(directory, "fcntl.flock", "ENOLCK")


@fault
def no_locks(directory: Path) -> Setup:
    return Setup({"ISOSTEP_CACHE_DIR": str(directory)}, "import sys\nsys.modules['fcntl'] = None\n")


@fault
def no_owners(directory: Path) -> Setup:
    """As on Windows."""
    before = "import os\ndel os.geteuid, os.getuid, os.O_NOFOLLOW, os.O_DIRECTORY, os.O_NONBLOCK\n"
    return Setup({"ISOSTEP_CACHE_DIR": str(directory)}, before)


@fault
def no_home(directory: Path) -> Setup:
    before = "import pwd\ndef unknown(*user):\n    raise KeyError(user)\npwd.getpwuid = unknown\n"
    return Setup(homeless(directory), before)


@fault
def no_home_of_an_unknown_user(directory: Path) -> Setup:
    if not IS_ROOT:
        pytest.skip("only root becomes another user")
    return as_somebody(Setup(homeless(directory)))


@fault
def a_home_that_is_not_there(directory: Path) -> Setup:
    return Setup(homeless(directory) | {"HOME": "/nonexistent/home"}, "import os\n" + _NO_MAKING)


@fault
def no_home_and_no_temporary_directory(directory: Path) -> Setup:
    setup = no_home(directory)
    setup.before += "import tempfile\ndef none():\n    raise FileNotFoundError\n"
    setup.before += "tempfile.gettempdir = none\n"
    return setup


@fault
def a_writer_that_was_killed(directory: Path) -> Setup:
    setup = chosen(directory)
    hold(setup)
    for process in setup.meanwhile:
        process.kill()
        process.wait()
    assert list(directory.glob("*.lock"))
    return setup


@fault
def a_writer_that_stands_still(directory: Path) -> Setup:
    setup = chosen(directory)
    hold(setup)
    for process in setup.meanwhile:
        process.send_signal(signal.SIGSTOP)
    setup.before = "from isostep.compile import turns\nturns.PATIENCE = 0.5\n"
    return setup


@fault
def a_size_that_is_none(directory: Path) -> Setup:
    return Setup({"ISOSTEP_CACHE_DIR": str(directory), "ISOSTEP_CACHE_SIZE": "plenty"})


@fault
def no_size(directory: Path) -> Setup:
    return Setup({"ISOSTEP_CACHE_DIR": str(directory), "ISOSTEP_CACHE_SIZE": "0"})


_NO_MAKING = """
real = os.mkdir
def mkdir(name, *args, **more):
    if name == "nonexistent":
        raise PermissionError(13, "simulated")
    return real(name, *args, **more)
os.mkdir = mkdir
"""


def homeless(directory: Path) -> dict[str, str]:
    temporary = directory.parent / "temporary"
    temporary.mkdir()
    temporary.chmod(0o1777)
    names = ("HOME", "XDG_CACHE_HOME", "ISOSTEP_CACHE_DIR")
    return dict.fromkeys(names, "") | {"TMPDIR": str(temporary)}


# What a step imports may be out of reach later.
_ONCE_BEFORE = """
import json, os
chosen = dict(os.environ)
os.environ["ISOSTEP_CACHE_DIR"] = os.environ["ISOSTEP_CACHE_PATH"] = "/dev/null/none"
import numpy, isostep
from isostep.compile import machine_code
p = {"p": numpy.linspace(-1, 1, 100)}
isostep.SGD(p, lr=0.5, momentum=0.5).step({"p": numpy.linspace(1, 2, 100)})
os.environ.clear()
os.environ.update(chosen)
machine_code._kernels.clear()
machine_code.compilations = 0
"""


def as_somebody(setup: Setup) -> Setup:
    """As a user whom the system does not know. Only root becomes one."""
    setup.before = (
        _ONCE_BEFORE + f"os.setgroups([])\nos.setgid({SOMEBODY})\nos.setuid({SOMEBODY})\n"
    )
    return setup


def private_name() -> str:
    private = cache.private()
    assert private is not None
    return private.name


_HOLD = """
import sys, time
from isostep.compile import cache, machine_code
def hold(*args):
    print("held", flush=True)
    time.sleep(1000)
machine_code._compile = hold
import numpy, isostep
p = {"p": numpy.linspace(-1, 1, 100)}
isostep.SGD(p, lr=0.5, momentum=0.5).step({"p": numpy.linspace(1, 2, 100)})
"""


def hold(setup: Setup) -> None:
    """A process that compiles the first kernel of a step, and does not get on."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD],
        env=os.environ | setup.environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    setup.meanwhile.append(process)
