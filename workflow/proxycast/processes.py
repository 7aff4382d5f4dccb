"""Processes of this machine by number (PID) and start time, because numbers are reused; GPUs that this one sees.

The start time is in clock ticks since boot, as in /proc, so setting the clock does not change it.
"""

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

GONE = "ZX"  # states of a process that has ended, waited for by its parent or not


def start_of(process: int) -> int | None:
    """When a process was started; None if there is none or it has ended."""
    found = _stat_of(process)
    return found[1] if found else None


def parent_of(process: int) -> int | None:
    """The number of its parent; None if there is no such process or it has ended."""
    found = _stat_of(process)
    return found[0] if found else None


def is_below(process: int | None, ancestor: int) -> bool:
    """Whether this living process descends from `ancestor`."""
    seen: set[int] = set()  # numbers reused meanwhile could form a cycle
    while process and process not in seen:
        seen.add(process)
        process = parent_of(process)
        if process == ancestor:
            return True
    return False


def descendants(process: int) -> dict[int, int]:
    """Number -> start time of all processes that descend from this one."""
    alive = {number: found for number in _process_numbers() if (found := _stat_of(number))}
    below: dict[int, int] = {}
    found = {process}
    while found:
        found = {number for number, (parent, _) in alive.items() if parent in found and number not in below}
        below |= {number: alive[number][1] for number in found}
    return below


def bare_environment() -> dict[str, str]:
    """An environment without secrets: only what Python may need to start.

    Python from a cluster's module may need LD_LIBRARY_PATH to find its libraries.
    """
    return {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}


def end(process: int, start: int) -> bool:
    """Kill the process with this number and start time; False if the number is now free or reused."""
    try:
        handle = _handle(process)
    except (OSError, OverflowError):  # it has ended
        return False
    try:  # the handle never passes to another process, so check the start time after opening it
        if start_of(process) != start:
            return False
        os.kill(process, signal.SIGKILL) if handle is None else signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError:  # it has ended, or belongs to another user
        return False
    finally:
        if handle is not None:
            os.close(handle)
    return True


def _handle(process: int) -> int | None:
    """A pidfd of a process; None where there are none: before Linux 5.3, in some containers and Python builds.

    Without one the process is killed right after its start time is compared.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(process)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            return None
        raise


def _stat_of(process: int) -> tuple[int, int] | None:
    """(Parent, start time), read together; None if there is no such process or it has ended."""
    try:
        said = Path(f"/proc/{process:d}/stat").read_text(errors="replace")
        state, parent, *fields = said.rpartition(")")[2].split()  # the program's name before it may hold any character
    except (OSError, ValueError):
        return None
    return None if state in GONE else (int(parent), int(fields[17]))


def _process_numbers() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them, found without torch."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(name.strip() for name in chosen.split(",") if name.strip() and name.strip() != "-1")
    # CUDA counts what a process sees from 0: in a container the only one may be /dev/nvidia3.
    return tuple(str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*")))
