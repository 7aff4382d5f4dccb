"""What Slurm says of jobs: their states, and what those in the queue wait for."""

import os
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from proxycast.jobs.takeover import SLURM_SECONDS

QUESTIONS = (
    # The controller forgets a job some minutes after its end; the accounting, where there is any, does not.
    ("squeue", "--noheader", "--states=all", "--format=%i|%T", "--jobs"),
    ("sacct", "--noheader", "--allocations", "--parsable2", "--format=JobIDRaw,State", "--jobs"),
)
QUEUE = ("squeue", "--me", "--noheader", "--states=all", "--format=%i|%T|%r|%k|%Z")
ACCOUNTING = ("sacct", "--noheader", "--allocations", "--parsable2", "--format=JobIDRaw", "--starttime=now")
AT_WORK = {"RUNNING", "COMPLETING", "SUSPENDED"}
QUEUED = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESIZING", "SPECIAL_EXIT"}


class SlurmError(Exception):
    """Slurm does not answer, or refuses; the message is its own."""


class Waiting(NamedTuple):
    """A job in the queue."""

    number: str
    reason: str  # Slurm's own, such as Priority or JobHeldUser
    comment: str  # that of Snakemake's plugin: rule_<rule>_wildcards_<values>; some clusters allow none


def slurm_states(jobs: Collection[str]) -> dict[str, str]:
    """Job -> its state, such as OUT_OF_MEMORY, NODE_FAIL, TIMEOUT or RUNNING, of those that Slurm knows."""
    found: dict[str, str] = {}
    for command, *options in QUESTIONS:
        asked = sorted(set(jobs) - found.keys())
        if asked and shutil.which(command):
            found |= _ask([command, *options, ",".join(asked)])
    return found


def waiting_jobs(folder: Path) -> list[Waiting]:
    """The user's jobs in the queue that were submitted from a folder; none where there is no Slurm.

    Raises `SlurmError` when Slurm does not answer.
    """
    if not shutil.which("squeue"):
        return []
    rows = (line.strip().split("|", 4) for line in _answer(QUEUE).splitlines() if line.count("|") >= 4)
    return [
        Waiting(number, reason.strip("() "), "" if comment == "(null)" else comment)
        for number, state, reason, comment, of in rows
        if state in QUEUED and os.path.realpath(of) == os.path.realpath(folder)
    ]


def require_accounting() -> None:
    """Raise `SlurmError` when sacct does not answer, as where no accounting runs."""
    _answer(ACCOUNTING)


def _answer(command: Collection[str]) -> str:
    name = next(iter(command))
    try:
        done = subprocess.run([*command], capture_output=True, text=True, timeout=SLURM_SECONDS)
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{name} gave no answer within {SLURM_SECONDS:.0f} s") from None
    except OSError as error:
        raise SlurmError(f"{name}: {error}") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise SlurmError(f"{name}: {said[-1] if said else f'exit status {done.returncode}'}")
    return done.stdout


def _ask(command: list[str]) -> dict[str, str]:
    """Empty if Slurm does not answer: the study goes on without."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SLURM_SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    rows = (line.strip().partition("|") for line in answer.splitlines() if "|" in line)
    return {job: state.split()[0] for job, _, state in rows if state.strip()}  # "CANCELLED by 1000"
