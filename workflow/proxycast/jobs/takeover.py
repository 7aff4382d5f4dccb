"""Gives a job to one process at a time.

After the death of a Snakemake its jobs may run on. A new Snakemake starts them again: these wait for the old ones,
cancel their Slurm jobs, or end the workers that a killed process has left.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import TextIO

import psutil

from proxycast import processes
from proxycast.jobs.attempt_log import Begun, last_begun, read_records, unended
from proxycast.jobs.private_files import take_lock
from proxycast.options import printable

STDERR = 2  # the file descriptor, which other processes inherit
LOCK_SECONDS = 600.0  # after which a lock is ignored if its holder is not known to live, such as one of a dead host
SLURM_SECONDS = 20.0  # for Slurm to answer: a controller that is down must not hold up a job or a user
# As Snakemake's plugin names all jobs of one run: `slurm-jobname-prefix` of the profile, and an id.
SLURM_JOB_NAME = re.compile(r"([A-Za-z0-9_-]{1,50}_)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def wait_for_others(log: Path, file: TextIO, console: TextIO) -> None:
    """Lock the log. Whoever holds the lock was started by a Snakemake that is gone: its Slurm job is cancelled.

    A process of this host is waited for as long as it lives, any other for `LOCK_SECONDS`. Workers of a killed process,
    which may live on with the lock, are ended. Two processes that do the same job write the same: every file is written
    whole under another name, then renamed.
    """
    if _lock(log, file, console):
        return
    holder = last_begun(log)
    who = f"process {holder.process} on {holder.host}, since {holder.at}" if holder else "another process"
    limit = "" if holder and holder.is_alive else f", at most {LOCK_SECONDS:.0f} s"
    say(console, printable(f"{log}: this job runs already ({who}); waiting for its end{limit}"))
    if holder and holder.slurm_job:
        _cancel(log, holder.slurm_job, console)
    until = time.monotonic() + LOCK_SECONDS
    while not _lock(log, file, console):
        if (holder := last_begun(log)) and holder.is_alive and _stderr_is(holder.process, file):
            until = time.monotonic() + LOCK_SECONDS
        elif time.monotonic() > until:
            say(console, f"{log}: still locked after {LOCK_SECONDS:.0f} s; the job goes on beside the other")
            return
        time.sleep(1)
        _end_orphans(log, file, console)


def _end_orphans(log: Path, file: TextIO, console: TextIO) -> None:
    """End the processes of this host that hold the lock by their stderr, if no attempt lives that can have begun them.

    They are this user's. A process that writes to the file without the lock goes on.
    """
    without_end = unended(log)
    began_here = any(isinstance(record, Begun) and record.host == socket.gethostname() for record in read_records(log))
    if not began_here or any(begun.is_alive for begun in without_end):
        return
    holding = {
        process.pid: start
        for process in psutil.process_iter()
        if process.pid != os.getpid() and (start := processes.start_of(process.pid)) and _holds(process, file)
    }
    if {begun.process_start for begun in without_end} & {*holding.values()}:
        return  # one that lives in a container has another number there, and the same start
    for process, start in holding.items():
        if processes.end(process, start):
            say(console, f"{log}: process {process} is of a job that was killed, and is ended")


def _holds(process: psutil.Process, file: TextIO) -> bool:
    """Whether a process of this user holds the lock by its stderr."""
    try:
        is_own = process.uids().real == os.getuid()
        return is_own and _stderr_is(process.pid, file) and "lock:" in _descriptor(process.pid)
    except (psutil.Error, OSError):  # of another user, or gone
        return False


def _descriptor(process: int) -> str:
    """What the kernel tells of a process's stderr. Raises `OSError`."""
    return Path(f"/proc/{process}/fdinfo/{STDERR}").read_text()


def _stderr_is(process: int, file: TextIO) -> bool:
    """Whether a process has the file as its stderr."""
    try:
        return os.path.samestat(os.stat(f"/proc/{process}/fd/{STDERR}"), os.fstat(file.fileno()))
    except OSError:  # of another user, or gone
        return False


def _lock(log: Path, file: TextIO, console: TextIO) -> bool:
    """Whether this process has the lock now, or there are no locks."""
    try:
        return take_lock(file)
    except OSError as error:
        say(console, f"{log}: not locked, as its file system knows no locks: {error}")
    return True


def _cancel(log: Path, number: str, console: TextIO) -> None:
    """Cancel a job of Slurm that Snakemake submitted, for this user and from this folder."""
    if number == os.environ.get("SLURM_JOB_ID") or not shutil.which("scancel"):
        return
    if why := _is_foreign(number):
        say(console, printable(f"{log}: Slurm job {number} is not cancelled: {why}"))
        return
    say(console, f"{log}: Slurm job {number} is of a Snakemake that is gone, and is cancelled")
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(["scancel", number], check=False, timeout=SLURM_SECONDS)


def _is_foreign(number: str) -> str | None:
    """Why a job may not be cancelled; None if it is this user's, of this folder, and named as Snakemake names jobs."""
    command = ["squeue", "--noheader", "--format=%A|%i|%U|%j|%Z", f"--jobs={number}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SLURM_SECONDS, errors="replace").stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__} of squeue"
    rows = [line.strip().split("|", 4) for line in answer.splitlines() if line.count("|") >= 4]
    for name, of_array, user, job_name, folder in rows:
        if number not in (name, of_array):
            continue
        if user != str(os.getuid()):
            return f"it is of user {user}"
        if not SLURM_JOB_NAME.fullmatch(job_name):
            return f"its name, {job_name!r}, is none that Snakemake gives"
        if os.path.realpath(folder) != os.path.realpath("."):
            return f"it was submitted from {folder}"
        return None
    return "squeue does not know it"


def say(console: TextIO, line: str) -> None:
    print(line, file=console, flush=True)
