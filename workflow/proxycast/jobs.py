"""How a script of the workflow runs: all that it says goes to its log; an error is told on the console too.

A log holds one attempt after the other, so that why the first one died is still there when the second has succeeded.
As Snakemake removes a job's log before it starts the job, the log is a link to a file beside it, `<job>.attempts`.
While a job runs it holds a lock on that file: of two processes that are to do the same work, as after the death of the
Snakemake that had started the first, one waits for the other.

Which process on which host an attempt is or was, in which Slurm job, and when it began and ended, is written to a
second file, `<job>.identity`, and read from there alone. What a log says may come from models, texts and libraries, and
is never read back as an attempt. Both files are for their owner alone (mode 0600): whoever may open a file may lock it.

With PROXYCAST_STALL_MINUTES in its environment a job that hangs ends itself: when its log has not grown for so long, it
writes the stack of every thread to the log and exits with status 1, so that Snakemake tries it again. Every job that
takes long tells its log of each checkpoint, file or batch; what its own processes say counts too.
"""

import contextlib
import errno
import faulthandler
import fcntl
import logging
import math
import os
import re
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, TextIO

import psutil
from pydantic import BaseModel, ConfigDict, Field, NaiveDatetime, TypeAdapter, ValidationError

from proxycast import processes
from proxycast.options import InputError, printable

STDERR = 2  # the file descriptor, which other processes inherit
PROGRESS_SECONDS = 5.0  # between two updates of a progress bar, so that a log file stays readable
LOCK_SECONDS = 600.0  # that a lock is believed whose holder is not known to live: as that of a dead host
PRESENCE_SECONDS = 1.0  # in which whoever looks whether a lock is held, and holds it for that moment, has let go of it
SLURM_SECONDS = 20.0  # that Slurm has to answer
STALL_VARIABLE = "PROXYCAST_STALL_MINUTES"
STALL_LOOKS = 60  # that a job is silent for before it counts as hung
HANGING = re.compile(
    r"No available shared memory broadcast block"
)  # vLLM, every minute, while a worker gives no answer
LARGEST_IDENTITY = 4 << 20  # bytes of the newest records that are read: some ten thousand attempts
LONGEST_SAID = 64 << 20  # bytes of an attempt's last words that are read
SLURM_JOB = re.compile(r"[0-9]{1,20}(_[0-9]{1,20})?")
# As Snakemake's plugin names all jobs of one run: `slurm-jobname-prefix` of the profile, and an id.
SLURM_JOB_NAME = re.compile(r"([A-Za-z0-9_-]{1,50}_)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


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
        """Whether it is known to live: its process is on this host, and is still the same one."""
        return self.host == socket.gethostname() and processes.start_of(self.process) == self.process_start


class Ended(_Record):
    """It ends."""

    state: Literal["done", "failed"]


RECORD = TypeAdapter(Annotated[Begun | Ended, Field(discriminator="state")])


@contextlib.contextmanager
def job(log: Path | str) -> Iterator[None]:
    """Append stderr (log records, progress bars, warnings) to the log; on an error, exit with status 1.

    What the job's own processes say goes there too, such as why a process of vLLM died. Bad input is told in its own
    words, without a traceback; for any other error the traceback stands in the log.
    """
    log = Path(log)
    with _to(os.dup(STDERR)) as console, _opened(log, console) as file:
        _wait_for_others(log, file, console)
        log.unlink(missing_ok=True)
        log.symlink_to(attempts_file(log).name)
        attempt = secrets.token_hex(8)
        try:
            _begin(log, attempt, file)  # before stderr is the log: of a process whose stderr it is, a record tells
            with _stderr_in(file, console), _ended_when_silent(log, attempt, file, console):
                yield
            _end(log, attempt, "done", file)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # a panic of a library in Rust is no Exception
            _tell(error, log, attempt, file, console)
            sys.exit(1)


def _to(descriptor: int) -> TextIO:
    return os.fdopen(descriptor, "w", buffering=1, encoding="utf8", errors="backslashreplace")


def _opened(log: Path, console: TextIO) -> TextIO:
    """The file of a job's log; where it cannot be had, that is told on the console, and the job ends."""
    try:
        return _to(open_private(attempts_file(log)))
    except (OSError, InputError) as error:
        _say(console, f"error: {error if isinstance(error, InputError) else f'{type(error).__name__}: {error}'}")
        sys.exit(1)


@contextlib.contextmanager
def _stderr_in(file: TextIO, console: TextIO) -> Iterator[None]:
    """Send to the log what this process, those that it starts, and log records say."""
    with contextlib.redirect_stderr(file):
        os.dup2(file.fileno(), STDERR)
        handler = logging.StreamHandler(file)
        handler.setFormatter(_OneLine("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        logging.basicConfig(level=logging.INFO, handlers=[handler])
        try:
            yield
        finally:
            os.dup2(console.fileno(), STDERR)


class _OneLine(logging.Formatter):
    """A record is one line, whatever names of files, tensors and keys it holds; a traceback follows it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, info) -> str:
        return _escaped_lines(super().formatException(info))


def _escaped_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


@contextlib.contextmanager
def _ended_when_silent(log: Path, attempt: str, file: TextIO, console: TextIO) -> Iterator[None]:
    """End this process and its own when the log has not grown for the minutes that the environment names."""
    minutes = stall_minutes()
    if minutes is None:
        yield
        return
    over = threading.Event()
    arguments = (minutes, log, attempt, file, console, over)
    watchdog = threading.Thread(target=_end_when_silent, args=arguments, daemon=True)
    watchdog.start()
    try:
        yield
    finally:
        over.set()
        watchdog.join()  # never while it is writing that the job hangs


def _end_when_silent(
    minutes: float, log: Path, attempt: str, file: TextIO, console: TextIO, over: threading.Event
) -> None:
    """Counts looks, not time: a job that Slurm has suspended does not look, and is silent without hanging."""
    said, silent = attempts_file(log).open("rb"), 0
    said.seek(0, os.SEEK_END)
    while not over.wait(minutes * 60 / STALL_LOOKS):
        new = said.read().decode(errors="replace").splitlines()
        silent = 0 if any(line.strip() and not HANGING.search(line) for line in new) else silent + 1
        if silent < STALL_LOOKS:
            continue
        workers = processes.descendants(os.getpid())
        message = f"error: stalled: nothing new in the log for {minutes:g} minutes ({STALL_VARIABLE})"
        with contextlib.suppress(OSError, InputError):
            print("the stack of every thread:", file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
            print(message, file=file, flush=True)
            _end(log, attempt, "failed", file)
        _say(console, message)
        for worker, start in workers.items():  # one that outlives its parent keeps its GPU
            processes.end(worker, start)
        os._exit(1)


def stall_minutes() -> float | None:
    """How long a job may be silent, as the environment says, or None. `InputError` for what is no number above 0."""
    said = os.environ.get(STALL_VARIABLE, "")
    try:
        minutes = float(said or math.inf)
    except ValueError:
        minutes = math.nan
    if not minutes > 0:
        raise InputError(f"{STALL_VARIABLE}: found {said!r}; give a number of minutes above 0, or unset it")
    return None if math.isinf(minutes) else minutes


def _tell(error: BaseException, log: Path, attempt: str, file: TextIO, console: TextIO) -> None:
    """Say why the job failed: on the console first, as a full disk takes no log."""
    message = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    message = _escaped_lines(message)
    _say(console, f"error: {message}")
    with contextlib.suppress(OSError, InputError):
        if not isinstance(error, InputError):
            file.write(_escaped_lines("".join(traceback.format_exception(error))))
        print(f"error: {message}", file=file, flush=True)
        _end(log, attempt, "failed", file)


class Presence:
    """One Snakemake a study: tells others, by a log with a lock as jobs have it, that this process is at work.

    Snakemake's own lock is of a whole folder, so that `--unlock` frees every study in it, and stays when its process is
    killed. This one ends with its process. Raises `InputError` while another process has it.
    """

    def __init__(self, log: Path):
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log, self._attempt = log, secrets.token_hex(8)
        self._file = _to(open_private(attempts_file(log)))
        with contextlib.suppress(OSError):  # a file system without locks
            self._lock()
        try:
            _begin(log, self._attempt, self._file)
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        until = time.monotonic() + PRESENCE_SECONDS
        while not _take_lock(self._file):
            if time.monotonic() > until:
                self._file.close()
                holder = _last_begun(self._log)
                who = f"process {holder.process} on {holder.host}" if holder else "another process"
                raise InputError(f"{who} works on this study ({self._log.parent.parent}); wait for its end, or stop it")
            time.sleep(0.1)

    def touch(self) -> None:
        """Say that it still is, for whoever sees no locks. Raises `OSError`."""
        os.utime(self._file.fileno())

    def end(self, state: Literal["done", "failed"]) -> None:
        """Raises `OSError`."""
        with self._file:
            _end(self._log, self._attempt, state, self._file)


def attempts_file(log: Path) -> Path:
    """What all attempts of the job with this log have said; its lock is the job's."""
    return log.with_suffix(".attempts")


def identity_file(log: Path) -> Path:
    """Where stands which processes the attempts of the job with this log are or were: a record a line, as JSON."""
    return log.with_suffix(".identity")


def open_private(path: Path) -> int:
    """A descriptor to append to a file that only its owner may open. Raises `OSError`.

    Raises `InputError` where something else than a file lies there: a link would lead what is written elsewhere.
    """
    return _open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def _open(path: Path, flags: int) -> int:
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
    except (
        PermissionError
    ):  # of another user; or the file system has no such modes, and the file is as private as it is
        _require_own(path, os.fstat(opened))


def _require_own(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise InputError(
            f"{path}: is private to another user (number {found.st_uid}), whose jobs write it; work in a folder of "
            "your own with a copy of the results, or remove it when no job of that user runs here"
        ) from None


def _begin(log: Path, attempt: str, file: TextIO) -> None:
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


def _end(log: Path, attempt: str, state: Literal["done", "failed"], file: TextIO) -> None:
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


def _records(log: Path) -> list[Begun | Ended]:
    """What the identity file tells, the newest records of a very long one; lines that are none are left out."""
    found = []
    path = identity_file(log)
    for line in _read(path, 0, None, LARGEST_IDENTITY).split(b"\n") if _is_own(path) else []:
        with contextlib.suppress(ValidationError):
            found += [RECORD.validate_json(line)] if line.strip() else []
    return found


def _is_own(path: Path) -> bool:
    """Whether nobody but this user can have written a file."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return found.st_uid == os.getuid() and not found.st_mode & 0o022


def _read(path: Path, start: int, stop: int | None, longest: int) -> bytes:
    """The bytes of a file from `start` to `stop` or its end, of many the last; none where it cannot be read."""
    try:
        with os.fdopen(_open(path, os.O_RDONLY), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            stop = size if stop is None else min(stop, size)
            start = max(start, stop - longest)
            file.seek(start)
            return file.read(max(stop - start, 0))
    except (OSError, InputError):
        return b""


def attempts(log: Path) -> list[Attempt]:
    """Every attempt of the job with this log, in order; none where there is no log, or where it is another user's."""
    records = _records(log)
    begun = [record for record in records if isinstance(record, Begun)]
    ends = {record.attempt: record for record in records if isinstance(record, Ended)}
    found, said_until = [], 0
    for record, following in zip(begun, [*begun[1:], None]):
        end = ends.get(record.attempt)
        stops = [other.position for other in (end, following) if other]
        start = max(record.position, said_until)  # no byte is read twice
        text = _read(attempts_file(log), start, min(stops, default=None), LONGEST_SAID)
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


def _unended(log: Path) -> list[Begun]:
    """Attempts of which no end is written down, in order."""
    records = _records(log)
    ended = {record.attempt for record in records if isinstance(record, Ended)}
    return [record for record in records if isinstance(record, Begun) and record.attempt not in ended]


def _last_begun(log: Path) -> Begun | None:
    return next(iter(_unended(log)[-1:]), None)


def _is_locked(log: Path) -> bool:
    """Whether somebody holds the lock; not where the file cannot be opened."""
    try:
        opened = _open(attempts_file(log), os.O_RDONLY)
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
    """Whether any job runs whose log lies below `logs`, those of rules (`<logs>/<rule>/<job>.log`) `besides`* aside."""
    files = logs.rglob("*.attempts")
    return any(_is_locked(file) for file in files if not file.parent.name.startswith(besides))


def _wait_for_others(log: Path, file: TextIO, console: TextIO) -> None:
    """Lock the log. Whoever holds the lock was started by a Snakemake that is gone: its Slurm job is cancelled.

    A process of this host is waited for as long as it lives; any other, and one that nothing tells of, for
    `LOCK_SECONDS`. Two processes that do the same work waste it, but what they write is right: every file is written
    whole under another name, and renamed. Of a process that was killed the workers may live on, idle and with the lock:
    they are ended.
    """
    if _lock(log, file, console):
        return
    holder = _last_begun(log)
    who = f"process {holder.process} on {holder.host}, since {holder.at}" if holder else "another process"
    limit = "" if holder and holder.is_alive else f", at most {LOCK_SECONDS:.0f} s"
    _say(console, printable(f"{log}: this job runs already ({who}); waiting for its end{limit}"))
    if holder and holder.slurm_job:
        _cancel(log, holder.slurm_job, console)
    until = time.monotonic() + LOCK_SECONDS
    while not _lock(log, file, console):
        if (holder := _last_begun(log)) and holder.is_alive and _stderr_is(holder.process, file):
            until = time.monotonic() + LOCK_SECONDS
        elif time.monotonic() > until:
            _say(console, f"{log}: still locked after {LOCK_SECONDS:.0f} s; the job goes on beside the other")
            return
        time.sleep(1)
        _end_orphans(log, file, console)


def _end_orphans(log: Path, file: TextIO, console: TextIO) -> None:
    """End the processes of this host that hold the lock by their stderr, if no attempt lives that can have begun them.

    They are this user's, and have the very file as stderr, with the lock on it: what else writes to it goes on.
    """
    unended = _unended(log)
    began_here = any(isinstance(record, Begun) and record.host == socket.gethostname() for record in _records(log))
    if not began_here or any(begun.is_alive for begun in unended):
        return
    holding = {
        process.pid: start
        for process in psutil.process_iter()
        if process.pid != os.getpid() and (start := processes.start_of(process.pid)) and _holds(process, file)
    }
    if {begun.process_start for begun in unended} & {*holding.values()}:
        return  # one that lives in a container has another number there, and the same start
    for process, start in holding.items():
        if processes.end(process, start):
            _say(console, f"{log}: process {process} is of a job that was killed, and is ended")


def _holds(process: psutil.Process, file: TextIO) -> bool:
    """Whether a process of this user has the file as its stderr, and the lock on it by that."""
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


def _take_lock(file: TextIO) -> bool:
    """Whether the lock is ours now. Raises `OSError` on a file system without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock(log: Path, file: TextIO, console: TextIO) -> bool:
    """Whether the lock is ours now, or cannot be had at all."""
    try:
        return _take_lock(file)
    except OSError as error:
        _say(console, f"{log}: not locked, as its file system knows no locks: {error}")
    return True


def _cancel(log: Path, number: str, console: TextIO) -> None:
    """Cancel a job of Slurm, if Slurm says that it is one of this user and folder that Snakemake has submitted."""
    if number == os.environ.get("SLURM_JOB_ID") or not shutil.which("scancel"):
        return
    if why := _is_foreign(number):
        _say(console, printable(f"{log}: Slurm job {number} is not cancelled: {why}"))
        return
    _say(console, f"{log}: Slurm job {number} is of a Snakemake that is gone, and is cancelled")
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(["scancel", number], check=False, timeout=SLURM_SECONDS)


def _is_foreign(number: str) -> str | None:
    """Why a job is not to be cancelled; None where it is this user's, of this folder, and named as Snakemake does."""
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


def _say(console: TextIO, line: str) -> None:
    print(line, file=console, flush=True)


def _now() -> datetime:
    return datetime.now().replace(microsecond=0)
