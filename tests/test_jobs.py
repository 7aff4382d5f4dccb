"""How a script runs: its log, how an error is told, and that no two processes do the same job at once."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

import psutil
import pytest
from proxycast import jobs
from proxycast.jobs import any_runs, attempts, job, running, takeover
from proxycast.jobs.attempt_log import unended
from proxycast.options import InputError

SLEEPER = """
import subprocess, sys, time
from proxycast.jobs import job
with job(sys.argv[1]):
    print("began", file=sys.stderr, flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def log(tmp_path) -> Path:
    return tmp_path / "job.log"


def start(log: Path, seconds: float, **environment: str) -> subprocess.Popen:
    """A process that holds the job of this log, when it has begun."""
    return subprocess.Popen(
        [sys.executable, "-c", SLEEPER, str(log), str(seconds)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def wait_until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def began(log: Path, times: int = 1) -> bool:
    return log.exists() and log.read_text().count("began") == times


def test_bad_input_is_told_in_one_line(log, capfd):
    with pytest.raises(SystemExit) as exit, job(log):
        raise InputError("file: key: found this, expected that")
    assert exit.value.code == 1
    assert capfd.readouterr().err == "error: file: key: found this, expected that\n"
    (attempt,) = attempts(log)
    assert attempt.state == "failed" and attempt.lines == ["error: file: key: found this, expected that"]


def test_any_other_error_leaves_its_traceback_in_the_log(log, capfd):
    with pytest.raises(SystemExit), job(log):
        {}["key"]
    assert capfd.readouterr().err == "error: KeyError: 'key'\n"
    (attempt,) = attempts(log)
    assert attempt.lines[0].startswith("Traceback") and attempt.lines[-1] == "error: KeyError: 'key'"


def test_a_panic_of_a_library_is_told_like_an_error(log, capfd):
    class PanicException(BaseException):
        """As pyo3's."""

    with pytest.raises(SystemExit, match="1"), job(log):
        raise PanicException("bad split")
    assert capfd.readouterr().err == "error: PanicException: bad split\n"
    assert attempts(log)[0].state == "failed"


def test_a_job_without_error_sends_stderr_to_the_log(log, capfd):
    with job(log):
        print("progress\rmore", file=sys.stderr)
    assert capfd.readouterr().err == ""
    (attempt,) = attempts(log)
    assert (attempt.state, attempt.lines, attempt.process) == ("done", ["progress", "more"], os.getpid())
    assert attempt.host == os.uname().nodename
    assert timedelta(0) <= datetime.now() - attempt.ended < timedelta(seconds=5) and attempt.started <= attempt.ended


def test_attempts_stand_one_after_the_other(log, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with pytest.raises(SystemExit), job(log):
        raise InputError("no")
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    with job(log):
        pass
    assert [(a.state, a.slurm_job) for a in attempts(log)] == [("failed", "17"), ("done", "18")]


def test_no_log_tells_of_no_attempt(log):
    assert attempts(log) == []
    jobs.attempts_file(log).write_text("of another program\n")
    assert attempts(log) == []


def test_a_process_that_died_is_told_from_one_that_runs(log):
    process = start(log, 60)
    wait_until(lambda: began(log))
    assert [attempt.state for attempt in attempts(log)] == ["running"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [(a.state, a.ended, a.lines) for a in attempts(log)] == [("killed", None, ["began"])]


def test_whether_any_job_runs(tmp_path):
    log = tmp_path / "score" / "a.log"
    log.parent.mkdir()
    process = start(log, 60)
    wait_until(lambda: began(log))
    assert any_runs(tmp_path, besides="download_")
    assert not any_runs(tmp_path, besides="sc")
    process.kill()
    process.wait()
    assert not any_runs(tmp_path, besides="download_")
    assert not any_runs(tmp_path / "none", besides="download_")


def test_of_two_processes_one_waits_for_the_other(log):
    first = start(log, 2)
    wait_until(lambda: began(log))
    second = start(log, 0)
    said = second.communicate()[1]
    assert f"process {first.pid} on " in said and "waiting for its end" in said
    assert first.wait() == second.returncode == 0
    one, other = attempts(log)
    assert (one.process, other.process) == (first.pid, second.pid) and other.started >= one.ended


def test_workers_of_a_killed_job_are_ended_and_not_waited_for(log):
    begins_a_worker = SLEEPER.replace("    time", '    subprocess.Popen(["sleep", "600"])\n    time')
    first = subprocess.Popen([sys.executable, "-c", begins_a_worker, str(log), "60"])
    wait_until(lambda: psutil.Process(first.pid).children())
    (worker,) = psutil.Process(first.pid).children()
    first.kill()
    first.wait()
    assert attempts(log)[-1].state == "running" and worker.is_running()  # the worker holds the lock
    second = start(log, 0)
    said = second.communicate(timeout=60)[1]
    assert second.returncode == 0 and f"process {worker.pid} is of a job that was killed" in said
    assert not psutil.pid_exists(worker.pid) or worker.status() == psutil.STATUS_ZOMBIE
    assert [a.state for a in attempts(log)] == ["killed", "done"]


RUN = "proxycast_8ddf8d05-0e3d-4d0f-9a42-7d7c5d2b5a4e"  # as Snakemake's plugin names the jobs of a run


def squeue(folder: Path, number: str, user: int | None = None, name: str = RUN, of: Path = Path()) -> None:
    """A Slurm that knows one job."""
    row = f"{number}|{number}|{os.getuid() if user is None else user}|{name}|{of.resolve()}"
    (folder / "squeue").write_text(f"#!/bin/sh\necho '{row}'\n")
    (folder / "squeue").chmod(0o755)


def test_the_slurm_job_of_a_snakemake_that_is_gone_is_cancelled(log, tmp_path):
    scancel = tmp_path / "scancel"
    first = start(log, 60, SLURM_JOB_ID="4711")
    wait_until(lambda: began(log))
    scancel.write_text(f"#!/bin/sh\n[ $1 = 4711 ] && kill {first.pid}\n")
    scancel.chmod(0o755)
    squeue(tmp_path, "4711")
    second = start(log, 0, SLURM_JOB_ID="4712", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert "Slurm job 4711 is of a Snakemake that is gone" in second.communicate()[1]
    assert second.returncode == 0 and first.wait() == -signal.SIGTERM
    assert [a.state for a in attempts(log)] == ["killed", "done"]


def test_a_job_that_slurm_has_put_back_does_not_cancel_itself(log, tmp_path):
    (tmp_path / "scancel").write_text("#!/bin/sh\ntouch $0.called\n")
    (tmp_path / "scancel").chmod(0o755)
    first = start(log, 2, SLURM_JOB_ID="4711")
    wait_until(lambda: began(log))
    second = start(log, 0, SLURM_JOB_ID="4711", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert "waiting for its end" in second.communicate()[1]
    assert first.wait() == 0 and not (tmp_path / "scancel.called").exists()


def test_the_lock_of_another_host_is_believed_for_a_while_only(log, monkeypatch, capfd):
    monkeypatch.setattr(takeover, "LOCK_SECONDS", 0.5)
    first = start(log, 60)
    wait_until(lambda: began(log))
    identity = jobs.identity_file(log)
    identity.write_text(identity.read_text().replace(f'"{os.uname().nodename}"', '"elsewhere"'))
    with job(log):
        pass
    said = capfd.readouterr().err
    assert "on elsewhere" in said and "still locked" in said
    first.kill()
    first.wait()


def test_a_file_system_without_locks_is_told_and_used(log, monkeypatch, capfd):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with job(log):
        pass
    assert "not locked, as its file system knows no locks" in capfd.readouterr().err
    assert [attempt.state for attempt in attempts(log)] == ["done"]


def test_a_full_disk_is_told_on_the_console(log, capfd, monkeypatch):
    real = jobs.open_private
    full = {jobs.attempts_file(log): lambda: os.open("/dev/full", os.O_WRONLY)}
    monkeypatch.setattr(running, "open_private", lambda path: full.get(path, lambda: real(path))())
    with pytest.raises((SystemExit, OSError)), job(log):
        pass
    assert "error: OSError: [Errno 28] No space left on device" in capfd.readouterr().err


def test_attempts_survive_that_snakemake_removes_the_log(log):
    with job(log):
        print("one", file=sys.stderr)
    log.unlink()
    with job(log):
        print("two", file=sys.stderr)
    assert [attempt.lines for attempt in attempts(log)] == [["one"], ["two"]]
    assert log.is_symlink() and "one" in log.read_text() and "two" in log.read_text()


# A job that hangs

HANGER = """
import subprocess, sys, time
from proxycast.jobs import job
def the_call_that_hangs(seconds):
    time.sleep(seconds)
with job(sys.argv[1]):
    child = subprocess.Popen(["sleep", "60"])
    print(f"child {child.pid}", file=sys.stderr, flush=True)
    for number in range(int(sys.argv[2])):
        print(sys.argv[4], number, file=sys.stderr, flush=True)
        time.sleep(0.05)
    the_call_that_hangs(float(sys.argv[3]))
"""


def hang(log: Path, lines: int, seconds: float, said: str = "checkpoint", **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-c", HANGER, str(log), str(lines), str(seconds), said]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment)


def test_a_job_that_hangs_tells_where_and_ends_with_its_workers(log):
    process = hang(log, 60, 60, PROXYCAST_STALL_MINUTES="0.02")  # 60 lines in more than the 1.2 s that it may be silent
    assert process.communicate(timeout=60)[1].endswith(
        "error: stalled: nothing new in the log for 0.02 minutes (PROXYCAST_STALL_MINUTES)\n"
    )
    assert process.returncode == 1
    (attempt,) = attempts(log)
    assert attempt.state == "failed" and "checkpoint 59" in attempt.lines
    assert any("in the_call_that_hangs" in line for line in attempt.lines)
    assert attempt.lines[-1].startswith("error: stalled")
    child = int(attempt.lines[0].removeprefix("child "))
    wait_until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def test_that_a_worker_waits_for_one_that_hangs_does_not_keep_a_job_alive(log):
    waits = "(EngineCore) INFO No available shared memory broadcast block found in 60 seconds."
    process = hang(log, 400, 20, waits, PROXYCAST_STALL_MINUTES="0.02")
    assert process.wait(60) == 1 and process.communicate()
    assert attempts(log)[0].lines[-1].startswith("error: stalled")
    assert len(attempts(log)[0].lines) < 200


def test_a_job_that_was_suspended_does_not_hang(log):
    process = hang(log, 1, 1, PROXYCAST_STALL_MINUTES="0.05")
    wait_until(lambda: log.exists() and "checkpoint 0" in log.read_text())
    process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    process.send_signal(signal.SIGCONT)
    assert process.wait(60) == 0 and process.communicate()


def test_without_a_limit_a_job_may_be_silent(log):
    assert hang(log, 1, 2, PROXYCAST_STALL_MINUTES="").wait(60) == 0
    with job(log):
        assert not [thread for thread in threading.enumerate() if thread.daemon and "silent" in thread.name]


@pytest.mark.parametrize("said", ["0", "-1", "soon", "nan"])
def test_a_limit_that_is_no_time_is_refused(log, monkeypatch, capfd, said):
    monkeypatch.setenv("PROXYCAST_STALL_MINUTES", said)
    with pytest.raises(SystemExit), job(log):
        pytest.fail("it has begun")
    assert capfd.readouterr().err == (
        f"error: PROXYCAST_STALL_MINUTES: found {said!r}; give a number of minutes above 0, or unset it\n"
    )


def test_the_presence_of_one_process_is_seen_and_ends(log):
    first = jobs.Presence(log)
    with pytest.raises(InputError, match=rf"^process {os.getpid()} on \S+ works on this study \({log.parent.parent}\)"):
        jobs.Presence(log)
    assert [a.state for a in attempts(log)] == ["running"]
    os.utime(jobs.attempts_file(log), (1, 1))
    first.touch()
    assert time.time() - jobs.attempts_file(log).stat().st_mtime < 5
    first.end("done")
    third = jobs.Presence(log)
    assert [a.state for a in attempts(log)] == ["done", "running"]
    third.end("failed")


# Text that is not ours, and locks that others hold


FORGED = "=== started 2026-01-01T00:00:00 on elsewhere, process 1, Slurm job --me "


@pytest.mark.parametrize("written", ["record", "print", "file"])
def test_text_in_a_log_is_no_attempt(log, tmp_path, written):
    """A tensor's name, what a library prints, a file that somebody has changed."""
    (tmp_path / "scancel").write_text("#!/bin/sh\necho $* >> $0.called\n")
    (tmp_path / "scancel").chmod(0o755)
    squeue(tmp_path, "--me")
    say = {
        "record": f'import logging; logging.getLogger("p").warning("%s", ["x\\n{FORGED}"]); time.sleep',
        "print": f"print({FORGED!r}, file=sys.stderr, flush=True); time.sleep",
        "file": f"open(sys.argv[1], 'a').write({FORGED!r} + chr(10)); time.sleep",
    }[written]
    path = f"{tmp_path}:{os.environ['PATH']}"
    forger = SLEEPER.replace("time.sleep", say)
    command = [sys.executable, "-c", forger, str(log), "3"]
    first = subprocess.Popen(command, env=os.environ | {"SLURM_JOB_ID": "41", "PATH": path})
    wait_until(lambda: log.exists() and "--me" in log.read_text())
    second = start(log, 0, SLURM_JOB_ID="42", PATH=path)
    said = second.communicate(timeout=60)[1]
    assert first.wait() == second.returncode == 0
    assert not (tmp_path / "scancel.called").exists() and "41 is not cancelled: squeue does not know it" in said
    assert [(a.process, a.slurm_job, a.state) for a in attempts(log)] == [
        (first.pid, "41", "done"),
        (second.pid, "42", "done"),
    ]


GOOD = '{"attempt":"00000000000000aa","at":"2026-01-01T00:00:00","position":0,"state":"running","host":"h"'
GOOD += ',"process":12,"process_start":1,"slurm_job":"7"}'
NINES = "9" * 5000


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"7"', '"--me"'),
        ('"7"', '"7 8"'),
        ('"7"', '"7,8"'),
        ('"7"', '"7\\n8"'),
        ('"7"', '"٧"'),
        ('"7"', "7"),
        ('"7"', f'"{NINES}"'),
        ('"2026-01-01T00:00:00"', '"now"'),
        ('"2026-01-01T00:00:00"', '"9999-12-31T23:59:59"'),
        ('"2026-01-01T00:00:00"', '"0001-01-01T00:00:00"'),
        ('"2026-01-01T00:00:00"', '"2026-01-01T00:00:00+00:00"'),
        ('"2026-01-01T00:00:00"', '"2026-02-31T00:00:00"'),
        (":12,", ":-1,"),
        (":12,", ":0,"),
        (":12,", f":{NINES},"),
        (":0,", ":-5,"),
        (":0,", f":{NINES},"),
        (":0,", ":NaN,"),
        ("running", "asleep"),
        ("}", ""),
        ("{", "[" * 100_000 + "{"),
        ("{", '{"more":1,'),
        ('"h"', '"\udce9\x00"'),
    ],
)
def test_a_forged_record_is_left_out_and_raises_nowhere(log, old, new):
    jobs.attempts_file(log).write_text("said\n")
    record = GOOD.replace(old, new, 1).encode(errors="surrogateescape")
    jobs.identity_file(log).write_bytes(b"\xff\xfe\n" + record + b"\n" + GOOD.encode() + b"\n{\n\n")
    (attempt,) = attempts(log)
    assert (attempt.process, attempt.slurm_job, attempt.state, attempt.lines) == (12, "7", "killed", ["said"])


def test_records_that_others_may_have_written_are_none(log):
    jobs.attempts_file(log).write_text("said\n")
    jobs.identity_file(log).write_text(GOOD)
    assert len(attempts(log)) == 1
    for mode in (0o620, 0o602, 0o666):
        jobs.identity_file(log).chmod(mode)
        assert attempts(log) == [] and unended(log) == []


def test_forged_positions_read_no_byte_twice(log):
    jobs.attempts_file(log).write_text("".join(f"line {number}\n" for number in range(1000)))
    records = [
        GOOD.replace("00aa", f"{number:04x}").replace(":0,", f":{position},")
        for number, position in enumerate([0, 1 << 50, 0, 5000, 0, 0, 3] * 20)
    ]
    jobs.identity_file(log).write_text("\n".join(records))
    found = attempts(log)
    assert len(found) == len(records) and sum(len(attempt.lines) for attempt in found) <= 1001


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (dict(user=12345), "it is of user 12345"),
        (dict(name="my-own-job"), "is none that Snakemake gives"),
        (dict(of=Path("/elsewhere")), "it was submitted from /elsewhere"),
        (dict(number="4710"), "squeue does not know it"),
    ],
)
def test_a_job_that_is_not_ours_is_not_cancelled(log, tmp_path, how, why):
    """The number is digits, and that of another job: of an old run, or somebody has changed the file."""
    (tmp_path / "scancel").write_text("#!/bin/sh\ntouch $0.called\n")
    (tmp_path / "scancel").chmod(0o755)
    squeue(tmp_path, **{"number": "4711"} | how)
    first = start(log, 2, SLURM_JOB_ID="4711")
    wait_until(lambda: began(log))
    second = start(log, 0, SLURM_JOB_ID="4712", PATH=f"{tmp_path}:{os.environ['PATH']}")
    said = second.communicate(timeout=60)[1]
    assert "Slurm job 4711 is not cancelled: " in said and why in said
    assert first.wait() == second.returncode == 0 and not (tmp_path / "scancel.called").exists()


def test_a_record_is_one_line(log):
    hostile = 'import logging; logging.getLogger("p").warning("%s", "tensor\\nerror: forged\\x1b[2J"); time.sleep'
    subprocess.run([sys.executable, "-c", SLEEPER.replace("time.sleep", hostile), str(log), "0"], check=True)
    lines = attempts(log)[0].lines
    assert [line[9:] for line in lines if "forged" in line] == [r"WARNING tensor\nerror: forged\x1b[2J"]


def test_only_a_warning_names_its_level(log):
    said = 'import logging; log = logging.getLogger("p"); log.info("told"); log.warning("warned"); time.sleep'
    subprocess.run([sys.executable, "-c", SLEEPER.replace("time.sleep", said), str(log), "0"], check=True)
    assert {line[9:] for line in attempts(log)[0].lines} >= {"told", "WARNING warned"}


def test_an_error_with_half_a_character_is_told(log, capfd):
    with pytest.raises(SystemExit), job(log):
        raise ValueError("\udcff\x1b[2J")
    assert capfd.readouterr().err == "error: ValueError: \\udcff\\x1b[2J\n"
    assert attempts(log)[0].state == "failed" and "\x1b" not in log.read_text()


def test_nobody_else_may_open_what_is_locked(log):
    """Whoever may read a file may hold a shared lock on it for ever; one that an older version has made, too."""
    jobs.attempts_file(log).write_text("old\n")
    jobs.attempts_file(log).chmod(0o644)
    with job(log):
        pass
    jobs.Presence(log.with_name("snakemake.log")).end("done")
    made = [path for path in log.parent.iterdir() if not path.is_symlink()]
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in made} == {
        f"{name}.{kind}": "0o600" for name in ("job", "snakemake") for kind in ("attempts", "identity")
    }


@pytest.mark.parametrize("call", ["open", "fchmod"])
def test_results_that_two_users_share_tell_whose_a_log_is(log, monkeypatch, capfd, call):
    """Private to another user; or of an older version, which let the group write."""
    jobs.attempts_file(log).write_text("old\n")
    jobs.attempts_file(log).chmod(0o664)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    owner = jobs.attempts_file(log).stat().st_uid

    def refused(*arguments):
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(os, call, refused)
        with job(log):
            pass
    assert f"job.attempts: is private to another user (number {owner}), whose jobs write it" in capfd.readouterr().err


def test_a_file_system_without_modes_is_used_as_it_is(log, monkeypatch):
    jobs.attempts_file(log).touch(0o755)

    def refused(*arguments):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refused)
    with job(log):
        pass
    assert [attempt.state for attempt in attempts(log)] == ["done"]


def test_a_lock_that_no_living_attempt_holds_is_waited_for_for_a_while(log, monkeypatch, capfd):
    """Of this host, too: here by another program, after an attempt that has ended, and one of a number used again."""
    monkeypatch.setattr(takeover, "LOCK_SECONDS", 1.0)
    with job(log):
        pass
    with jobs.attempts_file(log).open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with job(log):
            pass
        identity = jobs.identity_file(log)
        last = GOOD.replace('"h"', f'"{os.uname().nodename}"').replace(":12,", f":{os.getpid()},")
        identity.write_text(identity.read_text() + last + "\n")
        with job(log):
            pass
    said = capfd.readouterr().err
    assert said.count("waiting for its end, at most 1 s") == said.count("still locked after 1 s") == 2


def test_only_what_holds_the_lock_of_a_killed_job_is_ended(log):
    """Not a process that writes to the same file, nor one of another attempt that lives."""
    first = start(log, 60)
    wait_until(lambda: began(log))
    with jobs.attempts_file(log).open("a") as file:
        writer = subprocess.Popen(["sleep", "600"], stderr=file)
    second = start(log, 0)
    wait_until(lambda: "runs already" in second.stderr.readline())
    time.sleep(2)
    assert first.poll() is None and writer.poll() is None and second.poll() is None
    first.kill()
    first.wait()
    assert "ended" not in second.communicate(timeout=60)[1] and second.returncode == 0
    assert writer.poll() is None
    writer.kill()
    writer.wait()


@pytest.mark.parametrize("kind", ["attempts", "identity"])
@pytest.mark.parametrize("what", ["link", "pipe", "folder", "hanging link"])
def test_nothing_but_a_file_is_written_to(log, capfd, kind, what):
    path, victim = log.with_suffix(f".{kind}"), log.with_name("victim")
    victim.write_text("mine\n")
    {
        "link": lambda: path.symlink_to(victim),
        "hanging link": lambda: path.symlink_to(log.with_name("new")),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
    }[what]()
    with pytest.raises(SystemExit), job(log):
        pytest.fail("it has begun")
    assert capfd.readouterr().err.startswith(f"error: {path}: found a ")
    assert attempts(log) == [] and victim.read_text() == "mine\n" and victim.stat().st_mode & 0o777 != 0o600
    assert not log.with_name("new").exists()
    with pytest.raises(InputError, match="found a "):
        jobs.Presence(log)
