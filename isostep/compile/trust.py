"""Directories and files that nobody but the user and root can have written.

Whoever writes machine code that a process loads runs code in it. A path is therefore followed one
name at a time, each opened relative to the directory before it and looked at once it is open: what
was checked is what is used, whatever others rename meanwhile. A symbolic link to a directory is
followed if it is the user's own or root's; an entry must be a file itself.

Systems without POSIX owners and modes, such as Windows, keep a user's directories apart by other
means: there, paths are opened as they are.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from collections.abc import Generator
from pathlib import Path

_LINKS = 40  # as many as Linux follows
_LARGEST = 1 << 28  # bytes of an entry
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # opening a FIFO would wait for its writer
_BINARY = getattr(os, "O_BINARY", 0)
# A directory on the way need not be readable.
_SEARCH = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0) | _NO_LINK
_CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | _NO_LINK | _BINARY
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class UntrustedError(Exception):
    """Somebody else could have written it; the text says who, and where."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} {reason}")
        self.path, self.reason = path, reason


class Directory:
    """An open directory that only the user and root can write.

    Args:
        path: where it is.
        descriptor: it itself; None where directories cannot be opened.
    """

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self.path, self._at = path, descriptor

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            UntrustedError: it is no regular file, or others can write it.
            OSError: it cannot be read.
        """
        try:
            descriptor = self.open(name, os.O_RDONLY | _NO_LINK | _NO_WAIT | _BINARY)
        except OSError as error:
            if _NO_LINK and error.errno in (errno.ELOOP, errno.EMLINK):
                raise UntrustedError(self.path / name, "is a symbolic link") from None
            raise
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UntrustedError(self.path / name, "is not a regular file")
            _check(status, self.path / name)
            if status.st_size > _LARGEST:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            with open(descriptor, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)

    def replace(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all. Others may read it as the umask says, and not write.

        Raises:
            OSError: it cannot be written; the directory is as it was.
        """
        temporary = f".{name}.{os.urandom(6).hex()}"
        descriptor = self.open(temporary, _CREATE)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
            here = self._at
            os.replace(self._of(temporary), self._of(name), src_dir_fd=here, dst_dir_fd=here)
        except BaseException:
            with contextlib.suppress(OSError):
                self.remove(temporary)
            raise

    def open(self, name: str, flags: int) -> int:
        """A descriptor of a file, which is made with no more rights than the user's own to write.

        Raises:
            OSError: it cannot be opened.
        """
        return os.open(self._of(name), flags, 0o644, dir_fd=self._at)

    def remove(self, name: str) -> None:
        """Delete a file.

        Raises:
            OSError: it cannot be deleted.
        """
        os.unlink(self._of(name), dir_fd=self._at)

    def touch(self, name: str, older_than: float) -> None:
        """Set a file's time of modification to now if it is older than a time.

        Raises:
            OSError: it cannot be set.
        """
        place = self._of(name)
        if os.stat(place, dir_fd=self._at, follow_symlinks=False).st_mtime < older_than:
            os.utime(place, dir_fd=self._at)

    def files(self) -> dict[str, os.stat_result]:
        """What is known of each file, without following links.

        Raises:
            OSError: the directory cannot be listed.
        """
        found: dict[str, os.stat_result] = {}
        listed = self.path if self._at is None else self.open(".", os.O_RDONLY)
        try:
            names = os.listdir(listed)
        finally:
            if isinstance(listed, int):
                os.close(listed)
        for name in names:
            with contextlib.suppress(OSError):  # deleted meanwhile
                found[name] = os.stat(self._of(name), dir_fd=self._at, follow_symlinks=False)
        return found

    def _of(self, name: str) -> str:
        return name if self._at is not None else str(self.path / name)


@contextlib.contextmanager
def opened(path: Path, make: int | None = None) -> Generator[Directory]:
    """A directory that only the user and root can write.

    Args:
        path: where it is, by way of directories of which the same is true, or in which users can
            only rename and delete what is their own (`/tmp`).
        make: the mode of directories that are not there and are made; None: none is made.

    Raises:
        UntrustedError: others can write it, or something on its way.
        OSError: it is not there, or cannot be opened or made.
    """
    if _owners() is None:
        if make is not None:
            path.mkdir(parents=True, exist_ok=True)
        yield Directory(path, None)
        return
    descriptor = _walk(Path(os.path.join(os.getcwd(), path)), make)
    try:
        yield Directory(path, descriptor)
    finally:
        os.close(descriptor)


def _owners() -> tuple[int, ...] | None:
    """Who may own what is trusted; None where files have no owners in the sense of POSIX."""
    user = getattr(os, "geteuid", None)
    return None if user is None else (0, user())


def _walk(path: Path, make: int | None) -> int:
    """A descriptor of the directory at an absolute path."""
    # Whoever can write the root directory can replace Python itself: it is not looked at as a part
    # of the way. In some containers it has no owner that is known.
    at, here = os.open(path.anchor, _SEARCH), Path(path.anchor)
    names, links = deque(path.parts[1:]), 0
    try:
        while names:
            name = names.popleft()
            found = _enter(at, name, make)
            if found is None:
                links += 1
                if links > _LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
                target = Path(_link(at, name, here / name))
                names.extendleft(reversed(target.parts[bool(target.anchor) :]))
                if not target.anchor:
                    continue
                found, here, name = os.open(target.anchor, _SEARCH), Path(target.anchor), ""
            os.close(at)
            at, here = found, here / name
            if name:
                _check(os.fstat(at), here, _OTHERS)
        _check(os.fstat(at), here)
    except BaseException:
        os.close(at)
        raise
    return at


def _enter(at: int, name: str, make: int | None) -> int | None:
    """A descriptor of a directory in another one; None if it is a symbolic link."""
    try:
        return os.open(name, _SEARCH, dir_fd=at)
    except FileNotFoundError:
        if make is None:
            raise
        with contextlib.suppress(FileExistsError):  # another process was quicker
            os.mkdir(name, make, dir_fd=at)
        return os.open(name, _SEARCH, dir_fd=at)
    except OSError:
        if stat.S_ISLNK(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
            return None
        raise


def _link(at: int, name: str, path: Path) -> str:
    """Where a symbolic link leads. Others cannot change one that is not theirs, in a directory that
    is trusted."""
    _check_owner(os.stat(name, dir_fd=at, follow_symlinks=False), path)
    return os.readlink(name, dir_fd=at)


def _check_owner(status: os.stat_result, path: Path) -> None:
    owners = _owners()
    if owners is not None and status.st_uid not in owners:
        raise UntrustedError(path, f"belongs to user {status.st_uid}")


def _check(status: os.stat_result, path: Path, unless_sticky: int = 0) -> None:
    """Refuse what others own or can write; for a directory on the way, unless others' names in it
    are safe from them."""
    _check_owner(status, path)
    writers = status.st_mode & _OTHERS
    if status.st_mode & stat.S_ISVTX:
        writers &= ~unless_sticky
    if _owners() is not None and writers:
        who = "everybody" if writers & stat.S_IWOTH else "its group"
        raise UntrustedError(path, f"can be written by {who}")
