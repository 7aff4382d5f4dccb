"""Processes of this machine by their number and start time: the number alone may be that of another one by now.

The start time is in clock ticks since the machine was booted, as /proc has it; a clock that is set does not move it.
"""

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

GONE = "ZX"  # states of a process that has ended, whether or not its parent has asked for its status


def start_of(process: int) -> int | None:
    """When a process was started; None when there is none, or when it has ended."""
    found = _read(process)
    return found[1] if found else None


def parent_of(process: int) -> int | None:
    """The number of its parent; None when there is no such process, or when it has ended."""
    found = _read(process)
    return found[0] if found else None


def is_below(process: int | None, ancestor: int) -> bool:
    """Whether `ancestor` has started this living process, or one of those above it."""
    seen: set[int] = set()  # numbers that are used again meanwhile could make a circle
    while process and process not in seen:
        seen.add(process)
        process = parent_of(process)
        if process == ancestor:
            return True
    return False


def descendants(process: int) -> dict[int, int]:
    """Number -> start time of the processes that this one has started, and of those that they have."""
    alive = {number: found for number in _numbers() if (found := _read(number))}
    below: dict[int, int] = {}
    found = {process}
    while found:
        found = {number for number, (parent, _) in alive.items() if parent in found and number not in below}
        below |= {number: alive[number][1] for number in found}
    return below


def bare_environment() -> dict[str, str]:
    """The environment of a process that is to know nothing of this one's: only what Python may need to start at all.

    Where a cluster's module brings Python, its libraries are found by that.
    """
    return {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}


def end(process: int, start: int) -> bool:
    """Kill a process if it is still the one that was started then; whether it was."""
    try:
        handle = _handle(process)
    except (OSError, OverflowError):  # it has ended
        return False
    try:  # what has this handle is one process for ever: its start is read once it is held
        if start_of(process) != start:
            return False
        os.kill(process, signal.SIGKILL) if handle is None else signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError:  # it has ended, or is of another user
        return False
    finally:
        if handle is not None:
            os.close(handle)
    return True


def _handle(process: int) -> int | None:
    """None where there are no handles: before Linux 5.3, in some containers, and in Pythons built for such systems.

    There the start of a process is compared, and at once it is killed.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(process)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            return None
        raise


def _read(process: int) -> tuple[int, int] | None:
    """(Parent, start time), read at once; None when there is no such process, or when it has ended."""
    try:
        said = Path(f"/proc/{process:d}/stat").read_text(errors="replace")
        state, parent, *fields = said.rpartition(")")[2].split()  # the name before it may hold anything
    except (OSError, ValueError):
        return None
    return None if state in GONE else (int(parent), int(fields[17]))


def _numbers() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())
