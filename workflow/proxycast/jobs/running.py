"""Runs a script of the workflow: its stderr goes to a log, an error to the console too.

With PROXYCAST_STALL_MINUTES in its environment a job that hangs ends itself. When its log has not grown for so long, it
writes the stack of every thread to the log and exits with status 1, so that Snakemake tries it again. Every long job
logs each checkpoint, file or batch; what its own processes log counts too.
"""

import contextlib
import faulthandler
import logging
import math
import os
import re
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TextIO

from proxycast import processes
from proxycast.jobs.attempt_log import attempts_file, begin_attempt, end_attempt, last_begun
from proxycast.jobs.private_files import open_private, take_lock
from proxycast.jobs.takeover import STDERR, say, wait_for_others
from proxycast.options import InputError, printable

PROGRESS_SECONDS = 5.0  # between two updates of a progress bar, so that a log file stays readable
PRESENCE_SECONDS = 1.0  # whoever tests a lock holds it for a moment, and has released it by then
STALL_VARIABLE = "PROXYCAST_STALL_MINUTES"
STALL_LOOKS = 60  # silent looks after which a job counts as hung
HANGING = re.compile("No available shared memory broadcast block")  # vLLM logs it each minute without a worker's answer


@contextlib.contextmanager
def job(log: Path | str) -> Iterator[None]:
    """Append stderr (log records, progress bars, warnings) to the log; on an error, exit with status 1.

    What the job's own processes say goes there too, such as why a process of vLLM died. Bad input is told in its own
    words, without a traceback; for any other error the traceback stands in the log.
    """
    log = Path(log)
    with _to(os.dup(STDERR)) as console, _open_log(log, console) as file:
        wait_for_others(log, file, console)
        log.unlink(missing_ok=True)
        log.symlink_to(attempts_file(log).name)
        attempt = secrets.token_hex(8)
        try:
            # Before stderr is the log: every process whose stderr it is has a record.
            begin_attempt(log, attempt, file)
            with _stderr_in(file, console), _ended_when_silent(log, attempt, file, console):
                yield
            end_attempt(log, attempt, "done", file)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # a panic of a library in Rust is no Exception
            _tell(error, log, attempt, file, console)
            sys.exit(1)


def _to(descriptor: int) -> TextIO:
    return os.fdopen(descriptor, "w", buffering=1, encoding="utf8", errors="backslashreplace")


def _open_log(log: Path, console: TextIO) -> TextIO:
    """Open the file of a job's log. If that fails, the console tells it and the job ends."""
    try:
        return _to(open_private(attempts_file(log)))
    except (OSError, InputError) as error:
        say(console, f"error: {error if isinstance(error, InputError) else f'{type(error).__name__}: {error}'}")
        sys.exit(1)


@contextlib.contextmanager
def _stderr_in(file: TextIO, console: TextIO) -> Iterator[None]:
    """Send stderr of this process and of those that it starts to the log, and log records too."""
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
    """A record is one line, whatever characters it holds; a traceback follows it. A warning names its level."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname} " if record.levelno >= logging.WARNING else ""
        record.message = level + printable(record.message)
        return super().formatMessage(record)

    def formatException(self, info) -> str:
        return _escaped_lines(super().formatException(info))


def _escaped_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


@contextlib.contextmanager
def _ended_when_silent(log: Path, attempt: str, file: TextIO, console: TextIO) -> Iterator[None]:
    """End this process and those that it started when the log has not grown for PROXYCAST_STALL_MINUTES."""
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
    """Counts looks, not time: a job that Slurm has suspended is silent without hanging, and does not look."""
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
            end_attempt(log, attempt, "failed", file)
        say(console, message)
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
    """Tell why the job failed: on the console first, because the disk may be full."""
    message = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    message = _escaped_lines(message)
    say(console, f"error: {message}")
    with contextlib.suppress(OSError, InputError):
        if not isinstance(error, InputError):
            file.write(_escaped_lines("".join(traceback.format_exception(error))))
        print(f"error: {message}", file=file, flush=True)
        end_attempt(log, attempt, "failed", file)


class Presence:
    """Lets one Snakemake at a time work on a study, by a locked log as jobs have it.

    Snakemake's own lock is of the whole folder: `--unlock` frees every study in it, and a killed process leaves it
    behind. This lock ends with its process. Raises `InputError` while another process has it.
    """

    def __init__(self, log: Path):
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log, self._attempt = log, secrets.token_hex(8)
        self._file = _to(open_private(attempts_file(log)))
        with contextlib.suppress(OSError):  # a file system without locks
            self._lock()
        try:
            begin_attempt(log, self._attempt, self._file)
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        until = time.monotonic() + PRESENCE_SECONDS
        while not take_lock(self._file):
            if time.monotonic() > until:
                self._file.close()
                holder = last_begun(self._log)
                who = f"process {holder.process} on {holder.host}" if holder else "another process"
                raise InputError(f"{who} works on this study ({self._log.parent.parent}); wait for its end, or stop it")
            time.sleep(0.1)

    def touch(self) -> None:
        """Show that this process still works, on file systems without locks too. Raises `OSError`."""
        os.utime(self._file.fileno())

    def end(self, state: Literal["done", "failed"]) -> None:
        """Raises `OSError`."""
        with self._file:
            end_attempt(self._log, self._attempt, state, self._file)
