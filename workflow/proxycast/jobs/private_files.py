"""Files that only their owner may open, read and lock."""

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import TextIO

from proxycast.options import InputError


def open_private(path: Path) -> int:
    """A descriptor to append to a file that only its owner may open. Raises `OSError`.

    Raises `InputError` where something else than a file lies there: a link would lead what is written elsewhere.
    """
    return open_checked(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def open_checked(path: Path, flags: int) -> int:
    try:
        opened = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)  # a pipe is refused, not waited for
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR):
            raise InputError(f"{path}: found a link, folder or device where a file should be; remove it") from None
        if isinstance(error, PermissionError) and path.exists():
            _require_own(path, path.stat())
        raise
    try:
        found = os.fstat(opened)
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path}: found a pipe or device where a file should be; remove it")
        if flags & os.O_CREAT and stat.S_IMODE(found.st_mode) != 0o600:
            _make_private(path, opened)  # one that an older version has made
    except BaseException:
        os.close(opened)
        raise
    return opened


def _make_private(path: Path, opened: int) -> None:
    try:
        os.fchmod(opened, 0o600)
    except PermissionError:  # another user's file, or a file system without modes
        _require_own(path, os.fstat(opened))


def _require_own(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise InputError(
            f"{path}: is private to another user (number {found.st_uid}), whose jobs write it; work in a folder of "
            "your own with a copy of the results, or remove it when no job of that user runs here"
        ) from None


def is_own(path: Path) -> bool:
    """Whether nobody but this user can have written a file."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return found.st_uid == os.getuid() and not found.st_mode & 0o022


def read_tail(path: Path, start: int, stop: int | None, longest: int) -> bytes:
    """The bytes of a file from `start` to `stop` or its end, of many the last; none where it cannot be read."""
    try:
        with os.fdopen(open_checked(path, os.O_RDONLY), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            stop = size if stop is None else min(stop, size)
            start = max(start, stop - longest)
            file.seek(start)
            return file.read(max(stop - start, 0))
    except (OSError, InputError):
        return b""


def take_lock(file: TextIO) -> bool:
    """Whether this process has the lock now. Raises `OSError` on a file system without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
