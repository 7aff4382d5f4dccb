"""Room on the disk for the weights of several downloads at once: the option hub.disk_gb."""

import fcntl
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import TextIO

from proxycast.jobs import open_private
from proxycast.options import InputError
from proxycast.tables import remove_tree

log = logging.getLogger(__name__)

PLANNED_BYTES = ".planned_bytes"  # in the folder of a run: what its files will take; locked while its download lives
POLL_SECONDS = 10.0  # between two looks for room on the disk
SAY_SECONDS = 60.0  # between two log lines about waiting for room
ROOM_LOCK_SECONDS = 600.0  # to wait for the lock under which downloads look for room


@dataclass(frozen=True)
class Patience:
    """How long to wait for room on the disk without any change. Time in which `others_run()` does not count."""

    seconds: float = 600.0
    others_run: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class _Taken:
    """Bytes that a folder takes of hub.disk_gb: those planned while its download runs, else those that lie there."""

    size: int
    is_living: bool

    def told(self, path: Path) -> str:
        if self.is_living:
            state = "is being downloaded"
        else:
            state = "is left of a download that does not run" if path.name.startswith(".") else "waits to be scored"
        return f"{path} {self.size / 1e9:.2f} GB, which {state}"


@contextmanager
def reserved_room(
    partial: Path, folder: Path, planned: int, disk_gb: float | None, patience: Patience
) -> Iterator[None]:
    """Wait until `planned` bytes fit beside those of the other runs, then reserve them for the download to `partial`.

    The reservation is a lock on a file, so it ends with this process, however that ends.
    """
    if disk_gb is None:
        partial.mkdir(parents=True, exist_ok=True)
        yield
        return
    if planned > disk_gb * 1e9:
        raise InputError(
            f"{partial.parent}: the weights of one training run take {planned / 1e9:.2f} GB, more than hub.disk_gb "
            f"{disk_gb:g}; it must be at least that"
        )
    partial.parent.mkdir(parents=True, exist_ok=True)
    before, since, said = None, time.monotonic(), float("-inf")
    while True:
        with folder_lock(partial.parent):
            taken = _taken_by_others(partial, folder)
            if partial not in taken and sum(t.size for t in taken.values()) + planned <= disk_gb * 1e9:
                partial.mkdir(exist_ok=True)
                remove_tree(partial / PLANNED_BYTES)  # another user may have this file open and lock it
                reservation = _open_own_lock(partial / PLANNED_BYTES)
                reservation.truncate()
                fcntl.flock(reservation, fcntl.LOCK_EX)
                print(planned, file=reservation, flush=True)
                break
        told = "; ".join(t.told(path) for path, t in taken.items())
        now = time.monotonic()
        if now - said >= SAY_SECONDS:
            said = now
            log.info("waiting for %.2f GB of the %g GB of hub.disk_gb; taken: %s", planned / 1e9, disk_gb, told)
        if taken != before or any(t.is_living for t in taken.values()):
            before, since = taken, now
        elif now - since >= SAY_SECONDS and patience.others_run():
            since = now
        elif now - since >= patience.seconds:
            raise InputError(
                f"{folder}: its {planned / 1e9:.2f} GB have no room in hub.disk_gb {disk_gb:g}, and in "
                f"{patience.seconds / 60:.0f} minutes nothing ran that could make room. Taken: {told}. Mend what "
                "failed and run again: the runs of the study are then finished, scored and removed. Remove the "
                "folders of runs that the study has no more, or raise hub.disk_gb"
            )
        time.sleep(POLL_SECONDS)
    with reservation:
        yield


def _taken_by_others(partial: Path, folder: Path) -> dict[Path, _Taken]:
    """What lies beside `partial` and `folder`, and `partial` itself while another process downloads to it."""
    taken = {}
    for path in sorted(path for path in partial.parent.iterdir() if path.is_dir() and path != folder):
        planned = _living_reservation(path)
        if planned is not None:
            taken[path] = _Taken(planned, is_living=True)
        elif path != partial and (size := _bytes_of_its_own(path)):
            taken[path] = _Taken(size, is_living=False)
    return taken


def _living_reservation(folder: Path) -> int | None:
    """Bytes that a living process has reserved for `folder`."""
    try:
        opened = os.fdopen(os.open(folder / PLANNED_BYTES, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK))
    except OSError:  # none, a link, a folder, or another user's
        return None
    with opened as file:
        status = os.fstat(file.fileno())
        if not S_ISREG(status.st_mode) or status.st_mode & 0o077 or status.st_uid != os.getuid():
            return None  # anybody who may open it could lock it for ever
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            found = file.read(20).strip()
            return int(found) if re.fullmatch("[0-9]+", found) else 0
    return None


def _bytes_of_its_own(folder: Path) -> int:
    """Bytes that removing `folder` sets free: of files without links from elsewhere."""
    links: Counter[tuple[int, int]] = Counter()
    files = {}
    for path, _, names in os.walk(folder):
        for name in set(names) - {PLANNED_BYTES}:
            with suppress(FileNotFoundError):  # scored and removed at this moment
                status = os.lstat(os.path.join(path, name))
                links[status.st_dev, status.st_ino] += 1
                files[status.st_dev, status.st_ino] = status
    return sum(file.st_size for key, file in files.items() if S_ISREG(file.st_mode) and links[key] == file.st_nlink)


def _open_own_lock(path: Path) -> TextIO:
    """A lock file that only this user can lock. A link in its place is removed."""
    if path.is_symlink():
        path.unlink()
    return os.fdopen(open_private(path), "w")


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which download jobs of this machine or file system take one after the other."""
    with _open_own_lock(folder / ".lock") as file:
        try:
            _wait_for_lock(file, folder)
        except OSError as error:
            raise InputError(
                f"{folder}: hub.disk_gb needs file locks, which this file system lacks ({error})"
            ) from None
        yield


def _wait_for_lock(file: TextIO, folder: Path) -> None:
    """Take a lock that others hold only for a moment. `InputError` after `ROOM_LOCK_SECONDS`."""
    until = time.monotonic() + ROOM_LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise InputError(
                    f"{folder / '.lock'}: locked by another process for {ROOM_LOCK_SECONDS:.0f} s; end the download "
                    "that hangs, then run again"
                ) from None
            time.sleep(0.05)
