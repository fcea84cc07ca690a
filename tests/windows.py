"""This process as Windows would have it, as far as a package can tell.

`python -m pytest -p tests.windows` runs tests so. What is not Python is what it is here: libraries
are loaded before, and machine code is made for this system (`test_processors.py` makes it for
Windows, and does not run it).
"""

from __future__ import annotations

import builtins
import ctypes
import importlib
import io
import mmap
import os
import re
import signal
import stat
import sys
import time
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

LIBRARIES = ("numpy", "numba", "llvmlite.binding", "ml_dtypes", "hypothesis", "torch", "jax")
ABSENT_MODULES = (
    *("_posixshmem", "curses", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource"),
    *("syslog", "termios", "tty"),
)
# By prefixes, and by whole names, which end in a dollar sign.
ABSENT: dict[ModuleType, str] = {
    os: "CLD_ EFD_ EX_ F_ MFD_ POSIX_ PRIO_ P_ALL P_P RTLD_ SCHED_ ST_ W[A-Z] XATTR_ O_ASYNC "
    "O_CLOEXEC O_DIRECT O_DSYNC O_NOATIME O_NOCTTY O_NOFOLLOW O_NONBLOCK O_PATH O_SYNC O_TMPFILE "
    "chown chroot confstr copy_file_range environb eventfd fchdir fchmod fchown fdatasync fork "
    "forkpty fpathconf fstatvfs fwalk getegid getenvb geteuid getgid getgr getloadavg getp[gr] "
    "getrandom getres getsid getuid [gls]\\w*xattr killpg lchown lockf login_tty major makedev "
    "memfd_create minor mkfifo mknod nice openpty pathconf pidfd_ pipe2 posix_ pread pwrite readv "
    "register_at_fork sched_ sendfile set(e|g|p|r|s|u)\\w*id set_blocking setgroups setpgrp "
    "setpriority spawn[lv]p splice statvfs sync$ sysconf tc[gs]etpgrp ttyname uname$ wait$ "
    "wait[34] waitid writev",
    signal: "ITIMER_ SIG(ALRM|BUS|CHLD|CLD|CONT|HUP|IO|KILL|P|QUIT|RT|ST|SYS|T[RST]|U|VT|W|X) "
    "SIG_[BSU] alarm getitimer pause pthread_ setitimer siginterrupt sigpending sigtimedwait "
    "sigwait",
    time: "CLOCK_ clock_ pthread_ tzset",
    mmap: "MADV_ MAP_ PROT_",
}


def become() -> None:
    """Take from this process what Windows has not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for library in LIBRARIES:
            importlib.import_module(library)
        _have_compiled()
    sys.platform = "win32"
    for module, names in ABSENT.items():
        gone = re.compile("|".join(names.split()))
        for name in [name for name in vars(module) if gone.match(name)]:
            delattr(module, name)
    signal_module: Any = importlib.import_module("_signal")
    for name in [name for name in vars(signal_module) if name not in vars(signal)]:
        if name.startswith(("SIG", "pthread", "alarm", "setitimer")):
            delattr(signal_module, name)
    for name in ABSENT_MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    _have_windows_files()
    _have_windows_libraries()


def _have_compiled() -> None:
    """Numba loads parts of itself when it first compiles, and those it has for this system."""
    numba: Any = importlib.import_module("numba")
    numba.njit(lambda x: x + 1)(1)


# -- files -----------------------------------------------------------------------------------------

_MISSING = ("/proc", "/sys", "/dev/shm")
_listdir, _readlink = os.listdir, os.readlink
_stat, _lstat, _fstat = os.stat, os.lstat, os.fstat


def is_open(path: Any) -> bool:
    """Whether any process, this one too, has a file open or mapped."""
    wanted = os.path.realpath(path)
    for process in filter(str.isdecimal, _listdir("/proc")):
        try:
            folder = f"/proc/{process}/fd"
            if any(_target(f"{folder}/{number}") == wanted for number in _listdir(folder)):
                return True
            with _open(f"/proc/{process}/maps", encoding="utf-8") as file:
                if any(line.rstrip().endswith(wanted) for line in file):
                    return True
        except OSError:  # it has ended
            continue
    return False


def _target(link: str) -> str:
    try:
        return _readlink(link)
    except OSError:
        return ""


_open = io.open


def _refuse(path: Any) -> None:
    raise PermissionError(13, "The process cannot access the file: another is using it", path)


def _refuse_descriptors(*paths: Any, **more: Any) -> None:
    """Folders have none."""
    if any(isinstance(path, int) for path in paths):
        raise TypeError("path should be string, bytes or os.PathLike, not int")
    if any(more.get(name) is not None for name in ("dir_fd", "src_dir_fd", "dst_dir_fd")):
        raise NotImplementedError("dir_fd unavailable on this platform")


def _have_windows_files() -> None:
    """An open file is neither replaced nor removed, all belong to nobody, and nothing of Linux'
    own is there."""

    def guarded(real: Callable[..., Any]) -> Callable[..., Any]:
        def move(source: Any, target: Any, **more: Any) -> Any:
            _refuse_descriptors(source, target, **more)
            for path in (source, target):
                if is_open(path):
                    _refuse(path)
            if real is rename and os.path.exists(target):
                raise FileExistsError(17, "Cannot create a file when that file exists", target)
            return real(source, target, **more)

        return move

    def remove(path: Any, **more: Any) -> None:
        _refuse_descriptors(path, **more)
        if is_open(path):
            _refuse(path)
        unlink(path, **more)

    def hidden(real: Callable[..., Any]) -> Callable[..., Any]:
        def look(path: Any = ".", *given: Any, **more: Any) -> Any:
            _refuse_descriptors(**more)
            if isinstance(path, str | os.PathLike) and str(path).startswith(_MISSING):
                raise FileNotFoundError(2, "No such file or directory", str(path))
            return real(path, *given, **more)

        return look

    def open_file(path: Any, *given: Any, **more: Any) -> int:
        _refuse_descriptors(**more)
        if os.path.isdir(path):
            _refuse(path)
        return opened(path, *given, **more)

    opened = os.open
    os.open = hidden(open_file)
    os.supports_dir_fd.clear()
    os.supports_fd.clear()
    rename, replace, unlink = os.rename, os.replace, os.unlink
    os.rename, os.replace = guarded(rename), guarded(replace)
    os.unlink = os.remove = remove  # type: ignore[assignment]
    io.open = builtins.open = hidden(_open)
    os.listdir, os.scandir = hidden(os.listdir), hidden(os.scandir)
    os.stat = hidden(lambda path, **more: _windows_stat(_stat(path, **more)))
    os.lstat = hidden(
        lambda path, **more: _windows_stat(_stat(path, follow_symlinks=False, **more))
    )
    os.fstat = lambda number: _windows_stat(_fstat(number))


def _windows_stat(found: os.stat_result) -> os.stat_result:
    """No owner, no group, and modes that say no more than whether a file may be written."""
    kind = stat.S_IFMT(found.st_mode)
    rights = 0o777 if kind == stat.S_IFDIR else 0o666 if found.st_mode & 0o200 else 0o444
    names = [name for name in dir(found) if name.startswith("st_")]
    words = [kind | rights, *found[1:4], 0, 0, *found[6:10]]
    return os.stat_result(words, {name: getattr(found, name) for name in names[10:]})


# -- libraries -------------------------------------------------------------------------------------


def _have_windows_libraries() -> None:
    """None without a name, none of Linux, and no runtime with GNU's entry points."""
    real = ctypes.CDLL

    class Library(real):
        def __init__(self, name: Any, *given: Any, **more: Any) -> None:
            if "/" not in name and ".so" in name:  # None fails, too, and in this way
                raise FileNotFoundError(f"Could not find module {name!r}")
            super().__init__(name, *given, **more)

        def __getattr__(self, name: str) -> Any:
            if name.startswith("GOMP_"):
                raise AttributeError(f"function {name!r} not found")
            return super().__getattr__(name)

    ctypes.CDLL = Library


def pytest_collection() -> None:
    """Once pytest itself has been set up."""
    become()
