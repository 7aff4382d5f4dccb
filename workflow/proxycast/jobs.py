"""How a script of the workflow runs: all that it says goes to its log; an error is told on the console too.

A log holds one attempt after the other, so that why the first one died is still there when the second has succeeded.
As Snakemake removes a job's log before it starts the job, the log is a link to a file beside it, `<job>.attempts`.
While a job runs it holds a lock on that file: of two processes that are to do the same work, as after the death of the
Snakemake that had started the first, one waits for the other.

With PROXYCAST_STALL_MINUTES in its environment a job that hangs ends itself: when its log has not grown for so long, it
writes the stack of every thread to the log and exits with status 1, so that Snakemake tries it again. Every job that
takes long tells its log of each checkpoint, file or batch; what its own processes say counts too.
"""

import contextlib
import faulthandler
import fcntl
import logging
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, TextIO

import psutil

from proxycast.options import InputError

STDERR = 2  # the file descriptor, which other processes inherit
PROGRESS_SECONDS = 5.0  # between two updates of a progress bar, so that a log file stays readable
LOCK_SECONDS = 600.0  # that a lock of another host is believed: file systems keep those of a dead one for a while
STALL_VARIABLE = "PROXYCAST_STALL_MINUTES"
STALL_LOOKS = 60  # that a job is silent for before it counts as hung
HANGING = re.compile(
    r"No available shared memory broadcast block"
)  # vLLM, every minute, while a worker gives no answer
STARTED = re.compile(r"=== started (\S+) on (\S+), process (\d+)(?:, Slurm job (\S+))?")
ENDED = re.compile(r"=== (done|failed) (\S+)")


@dataclass(frozen=True)
class Attempt:
    """One run of a job, as its log tells it. A killed one has no end; one that holds the log's lock is running."""

    started: datetime
    host: str
    process: int
    slurm_job: str | None
    ended: datetime | None
    state: Literal["done", "failed", "running", "killed"]
    lines: list[str]  # what it said


@contextlib.contextmanager
def job(log: Path | str) -> Iterator[None]:
    """Append stderr (log records, progress bars, warnings) to the log; on an error, exit with status 1.

    What the job's own processes say goes there too, such as why a process of vLLM died. Bad input is told in its own
    words, without a traceback; for any other error the traceback stands in the log.
    """
    log = Path(log)
    with (
        os.fdopen(os.dup(STDERR), "w", encoding="utf8") as console,
        attempts_file(log).open("a", buffering=1, encoding="utf8") as file,
    ):
        _wait_for_others(log, file, console)
        log.unlink(missing_ok=True)
        log.symlink_to(attempts_file(log).name)
        slurm_job = f", Slurm job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
        with contextlib.redirect_stderr(file):
            os.dup2(file.fileno(), STDERR)
            logging.basicConfig(stream=file, level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
            try:
                print(f"{_started()}{slurm_job}", file=file)
                with _ended_when_silent(file, console):
                    yield
                print(f"\n=== done {_now()}", file=file)
            except (KeyboardInterrupt, SystemExit, GeneratorExit):
                raise
            except BaseException as error:  # a panic of a library in Rust is no Exception
                _tell(error, file, console)
                sys.exit(1)
            finally:
                os.dup2(console.fileno(), STDERR)


@contextlib.contextmanager
def _ended_when_silent(file: TextIO, console: TextIO) -> Iterator[None]:
    """End this process and its own when the log has not grown for the minutes that the environment names."""
    minutes = stall_minutes()
    if minutes is None:
        yield
        return
    over = threading.Event()
    watchdog = threading.Thread(target=_end_when_silent, args=(minutes, file, console, over), daemon=True)
    watchdog.start()
    try:
        yield
    finally:
        over.set()
        watchdog.join()  # never while it is writing that the job hangs


def _end_when_silent(minutes: float, file: TextIO, console: TextIO, over: threading.Event) -> None:
    """Counts looks, not time: a job that Slurm has suspended does not look, and is silent without hanging."""
    log, silent = Path(file.name).open("rb"), 0
    log.seek(0, os.SEEK_END)
    while not over.wait(minutes * 60 / STALL_LOOKS):
        new = log.read().decode(errors="replace").splitlines()
        silent = 0 if any(line.strip() and not HANGING.search(line) for line in new) else silent + 1
        if silent < STALL_LOOKS:
            continue
        children = psutil.Process().children(recursive=True)
        message = f"error: stalled: nothing new in the log for {minutes:g} minutes ({STALL_VARIABLE})"
        with contextlib.suppress(OSError):
            print("the stack of every thread:", file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
            print(f"{message}\n=== failed {_now()}", file=file, flush=True)
        _say(console, message)
        for child in children:  # a worker that outlives its parent keeps its GPU
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
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


def _tell(error: BaseException, file: TextIO, console: TextIO) -> None:
    """Say why the job failed: on the console first, as a full disk takes no log."""
    message = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    _say(console, f"error: {message}")
    with contextlib.suppress(OSError):
        if not isinstance(error, InputError):
            traceback.print_exception(error, file=file)
        print(f"error: {message}\n=== failed {_now()}", file=file, flush=True)


class Presence:
    """One Snakemake a study: tells others, by a log with a lock as jobs have it, that this process is at work.

    Snakemake's own lock is of a whole folder, so that `--unlock` frees every study in it, and stays when its process is
    killed. This one ends with its process. Raises `InputError` while another process has it.
    """

    def __init__(self, log: Path):
        log.parent.mkdir(parents=True, exist_ok=True)
        self._file = attempts_file(log).open("a", buffering=1, encoding="utf8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            holder = next(iter(attempts(log)[-1:]), None)
            who = f"process {holder.process} on {holder.host}" if holder else "another process"
            raise InputError(f"{who} works on this study ({log.parent.parent}); wait for its end, or stop it") from None
        except OSError:  # a file system without locks
            pass
        print(_started(), file=self._file)

    def touch(self) -> None:
        """Say that it still is, for whoever sees no locks. Raises `OSError`."""
        os.utime(self._file.fileno())

    def end(self, state: Literal["done", "failed"]) -> None:
        with self._file:
            print(f"=== {state} {_now()}", file=self._file)


def attempts_file(log: Path) -> Path:
    """Where all attempts of the job with this log are told of."""
    return log.with_suffix(".attempts")


def attempts(log: Path) -> list[Attempt]:
    """Every attempt that the log of a job tells of, in order; none where there is no log."""
    try:
        text = attempts_file(log).read_text(encoding="utf8", errors="replace").replace("\r", "\n")
    except FileNotFoundError:
        return []
    starts = [*STARTED.finditer(text)]
    ends = [found.start() for found in starts[1:]] + [len(text)]
    return [_attempt(log, start, text[start.end() : end], end == len(text)) for start, end in zip(starts, ends)]


def _attempt(log: Path, start: re.Match, said: str, is_last: bool) -> Attempt:
    end = next(iter([*ENDED.finditer(said)][-1:]), None)
    state = end[1] if end else "running" if is_last and _is_locked(log) else "killed"
    return Attempt(
        started=datetime.fromisoformat(start[1]),
        host=start[2],
        process=int(start[3]),
        slurm_job=start[4],
        ended=datetime.fromisoformat(end[2]) if end else None,
        state=state,
        lines=[line for line in said[: end.start() if end else None].splitlines() if line.strip()],
    )


def _is_locked(log: Path) -> bool:
    with attempts_file(log).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            pass
    return False


def any_runs(logs: Path, besides: str) -> bool:
    """Whether any job runs whose log lies below `logs`, those of rules (`<logs>/<rule>/<job>.log`) `besides`* aside."""
    files = logs.rglob("*.attempts")
    return any(_is_locked(file) for file in files if not file.parent.name.startswith(besides))


def _wait_for_others(log: Path, file: TextIO, console: TextIO) -> None:
    """Lock the log. Whoever holds the lock was started by a Snakemake that is gone: its Slurm job is cancelled.

    Any other is waited for: on this host to its end, on another one for `LOCK_SECONDS`. Two processes that do the same
    work waste it, but what they write is right: every file is written whole under another name, and renamed. Of one
    that was killed the workers may live on, idle and with the lock: they are ended.
    """
    until = None
    while not _lock(log, file, console):
        if until is None:
            holder = next(iter(attempts(log)[-1:]), None)
            is_here = holder is not None and holder.host == socket.gethostname()
            until = math.inf if is_here else time.monotonic() + LOCK_SECONDS
            _tell_and_cancel(log, holder, console)
        if time.monotonic() > until:
            _say(console, f"{log}: still locked after {LOCK_SECONDS:.0f} s; the job goes on beside the other")
            return
        time.sleep(1)
        if is_here:
            _end_orphans(log, console)


def _end_orphans(log: Path, console: TextIO) -> None:
    """End the processes of this host that tell this log what they do, if the one that began them is gone."""
    holder = attempts(log)[-1].process
    tell = {process.pid: process for process in psutil.process_iter() if _tells(process, attempts_file(log))}
    if holder in tell:
        return
    for pid, process in tell.items():
        _say(console, f"{log}: process {pid} is of a job that was killed, and is ended")
        with contextlib.suppress(psutil.Error):
            process.kill()


def _tells(process: psutil.Process, file: Path) -> bool:
    """Whether a process has `file` as its stderr."""
    try:
        return any(opened.fd == STDERR and Path(opened.path) == file.resolve() for opened in process.open_files())
    except psutil.Error:  # of another user, or gone
        return False


def _lock(log: Path, file: TextIO, console: TextIO) -> bool:
    """Whether the lock is ours now, or cannot be had at all."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        _say(console, f"{log}: not locked, as its file system knows no locks: {error}")
    return True


def _tell_and_cancel(log: Path, holder: Attempt | None, console: TextIO) -> None:
    who = f"process {holder.process} on {holder.host}, since {holder.started}" if holder else "another process"
    _say(console, f"{log}: this job runs already ({who}); waiting for its end")
    other = holder.slurm_job if holder else None
    if other and other != os.environ.get("SLURM_JOB_ID") and shutil.which("scancel"):
        _say(console, f"{log}: Slurm job {other} is of a Snakemake that is gone, and is cancelled")
        subprocess.run(["scancel", other], check=False)


def _say(console: TextIO, line: str) -> None:
    print(line, file=console, flush=True)


def _started() -> str:
    return f"=== started {_now()} on {socket.gethostname()}, process {os.getpid()}"


def _now() -> str:
    return datetime.now().isoformat(timespec="seconds")
