"""The attempts of a job, as its log and the file beside it tell.

A log holds all attempts, so that the reason of an early failure survives a later success. Snakemake removes the log of
a job before it starts it; so the log is a link to a file beside it, `<job>.attempts`. A running job has a lock on that
file. When an attempt began and ended, in which process, on which host and in which Slurm job, is written to a second
file, `<job>.identity`, and read from there alone: a log may quote models, texts and libraries. Both files are for their
owner alone (mode 0600), because whoever may open a file may lock it.
"""

import contextlib
import fcntl
import os
import re
import socket
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, TextIO

from pydantic import BaseModel, ConfigDict, Field, NaiveDatetime, TypeAdapter, ValidationError

from proxycast import processes
from proxycast.jobs.private_files import is_own, open_checked, open_private, read_tail
from proxycast.options import InputError, printable

LARGEST_IDENTITY = 4 << 20  # bytes of the newest records that are read: some ten thousand attempts
LONGEST_SAID = 64 << 20  # bytes of an attempt's last words that are read
SLURM_JOB = re.compile(r"[0-9]{1,20}(_[0-9]{1,20})?")
# What many programs put into logs, such as colours, and tells nothing.
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Attempt:
    """One run of a job. A killed one has no end; one that holds the log's lock is running."""

    started: datetime
    host: str
    process: int
    slurm_job: str | None
    ended: datetime | None
    state: Literal["done", "failed", "running", "killed"]
    lines: list[str]  # what it said


class _Record(BaseModel):
    """A line of an identity file. The bounds are those of numbers that a reader can work with."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    attempt: str = Field(pattern=r"^[0-9a-f]{16}$")
    at: Annotated[NaiveDatetime, Field(ge=datetime(1980, 1, 1), lt=datetime(2200, 1, 1))]
    position: int = Field(ge=0, lt=1 << 62)  # bytes of the log that were there before


class Begun(_Record):
    """An attempt begins."""

    state: Literal["running"]
    host: str = Field(min_length=1, max_length=255)
    process: int = Field(gt=0, lt=1 << 31)
    process_start: int = Field(ge=0, lt=1 << 62)  # as `processes` has it
    slurm_job: str | None = Field(pattern=f"^{SLURM_JOB.pattern}$")

    @property
    def is_alive(self) -> bool:
        """Whether its process is on this host and still runs."""
        return self.host == socket.gethostname() and processes.start_of(self.process) == self.process_start


class Ended(_Record):
    """It ends."""

    state: Literal["done", "failed"]


RECORD = TypeAdapter(Annotated[Begun | Ended, Field(discriminator="state")])


def shown(text: object) -> str:
    """One line of a log, or a name, without anything that a terminal would interpret."""
    return printable(ESCAPES.sub("", str(text)).expandtabs(4))


def attempts_file(log: Path) -> Path:
    """The file with the log lines of all attempts; its lock is the job's."""
    return log.with_suffix(".attempts")


def identity_file(log: Path) -> Path:
    """The file that identifies the attempts: one record a line, as JSON."""
    return log.with_suffix(".identity")


def begin_attempt(log: Path, attempt: str, file: TextIO) -> None:
    """Write down that this process begins an attempt. Raises `OSError`."""
    number = os.environ.get("SLURM_JOB_ID", "")
    slurm_job = number if SLURM_JOB.fullmatch(number) else None
    line = f"=== started {_now().isoformat()} on {socket.gethostname()}, process {os.getpid()}"
    line += f", Slurm job {slurm_job}\n" if slurm_job else "\n"
    record = Begun(
        attempt=attempt,
        at=_now(),
        position=os.fstat(file.fileno()).st_size + len(line.encode()),
        state="running",
        host=socket.gethostname(),
        process=os.getpid(),
        process_start=processes.start_of(os.getpid()) or 0,
        slurm_job=slurm_job,
    )
    _append(log, record)
    file.write(line)


def end_attempt(log: Path, attempt: str, state: Literal["done", "failed"], file: TextIO) -> None:
    """Write down how an attempt ended. Raises `OSError`."""
    position = os.fstat(file.fileno()).st_size
    _append(log, Ended(attempt=attempt, at=_now(), position=position, state=state))
    print(f"\n=== {state} {_now().isoformat()}", file=file, flush=True)


def _append(log: Path, record: Begun | Ended) -> None:
    """One line, in one call. A line break before it ends one that was cut, by a full disk or a kill."""
    opened = open_private(identity_file(log))
    try:
        os.write(opened, f"\n{record.model_dump_json()}\n".encode())
    finally:
        os.close(opened)


def read_records(log: Path) -> list[Begun | Ended]:
    """The records of the identity file, of a very long one the newest. Lines that are no records are left out."""
    found = []
    path = identity_file(log)
    for line in read_tail(path, 0, None, LARGEST_IDENTITY).split(b"\n") if is_own(path) else []:
        with contextlib.suppress(ValidationError):
            found += [RECORD.validate_json(line)] if line.strip() else []
    return found


def attempts(log: Path) -> list[Attempt]:
    """Every attempt of the job with this log, in order; none if there is no log or it is another user's."""
    records = read_records(log)
    begun = [record for record in records if isinstance(record, Begun)]
    ends = {record.attempt: record for record in records if isinstance(record, Ended)}
    found, said_until = [], 0
    for record, following in zip(begun, [*begun[1:], None]):
        end = ends.get(record.attempt)
        stops = [other.position for other in (end, following) if other]
        start = max(record.position, said_until)  # no byte is read twice
        text = read_tail(attempts_file(log), start, min(stops, default=None), LONGEST_SAID)
        said_until = max(start, min(stops, default=start))
        state = end.state if end else "running" if following is None and _is_locked(log) else "killed"
        lines = text.decode("utf8", errors="replace").replace("\r", "\n").splitlines()
        found.append(
            Attempt(
                started=record.at,
                host=record.host,
                process=record.process,
                slurm_job=record.slurm_job,
                ended=end.at if end else None,
                state=state,
                lines=[line for line in lines if line.strip()],
            )
        )
    return found


def unended(log: Path) -> list[Begun]:
    """Attempts without a recorded end, in order."""
    records = read_records(log)
    ended = {record.attempt for record in records if isinstance(record, Ended)}
    return [record for record in records if isinstance(record, Begun) and record.attempt not in ended]


def last_begun(log: Path) -> Begun | None:
    return next(iter(unended(log)[-1:]), None)


def _is_locked(log: Path) -> bool:
    """Whether somebody holds the lock; not where the file cannot be opened."""
    try:
        opened = open_checked(attempts_file(log), os.O_RDONLY)
    except (OSError, InputError):
        return False
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(opened)
    return False


def any_runs(logs: Path, besides: str) -> bool:
    """Whether any job with a log below `logs` runs, except for rules (`<logs>/<rule>/`) that begin with `besides`."""
    files = logs.rglob("*.attempts")
    return any(_is_locked(file) for file in files if not file.parent.name.startswith(besides))


def _now() -> datetime:
    return datetime.now().replace(microsecond=0)
