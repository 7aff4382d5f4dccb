"""Processes are told apart by their start, so that none is ended that only has the number of another."""

import errno
import os
import subprocess
import sys
import time

import pytest
from proxycast import processes

NESTED = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"])
"""


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_a_process_whose_number_was_used_again_is_not_ended(sleeper):
    start = processes.start_of(sleeper.pid)
    assert not processes.end(sleeper.pid, start - 1) and not processes.end(sleeper.pid, start + 1)
    time.sleep(0.1)
    assert sleeper.poll() is None
    assert processes.end(sleeper.pid, start) and sleeper.wait(10) == -9
    assert not processes.end(sleeper.pid, start)


@pytest.mark.parametrize("kernel", ["no call", "an old one", "a container"])
def test_processes_end_without_handles_too(sleeper, kernel, monkeypatch):
    """Pythons of conda are built for old systems."""

    def refused(process):
        raise OSError(errno.ENOSYS if kernel == "an old one" else errno.EPERM, "refused")

    monkeypatch.setattr(os, "pidfd_open", refused)
    if kernel == "no call":
        monkeypatch.delattr(os, "pidfd_open")
    start = processes.start_of(sleeper.pid)
    assert not processes.end(sleeper.pid, start - 1) and sleeper.poll() is None
    assert processes.end(sleeper.pid, start) and sleeper.wait(10) == -9
    assert not processes.end(sleeper.pid, start)


def test_a_process_that_has_ended_has_no_start():
    process = subprocess.Popen(["true"])
    deadline = time.monotonic() + 10
    while processes.start_of(process.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert processes.start_of(process.pid) is None and processes.parent_of(process.pid) is None  # nobody has waited
    process.wait()
    assert [processes.start_of(number) for number in (process.pid, 0, -1, 1 << 70)] == [None] * 4
    assert not processes.end(1 << 70, 0) and not processes.end(-1, 0)


def test_what_a_process_has_started():
    process = subprocess.Popen([sys.executable, "-c", NESTED], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "1\n"
    below = processes.descendants(process.pid)
    assert len(below) == 1 and {process.pid, *below} <= {*processes.descendants(os.getpid())}
    (nested,) = below
    assert processes.parent_of(nested) == process.pid
    assert processes.is_below(nested, process.pid) and processes.is_below(nested, os.getpid())
    assert not processes.is_below(process.pid, nested) and not processes.is_below(None, 1)
    for number, start in {process.pid: processes.start_of(process.pid), **below}.items():
        assert processes.end(number, start)
    process.wait()
    process.stdout.close()


def test_a_name_that_looks_like_the_fields_behind_it_is_a_name(tmp_path):
    program = tmp_path / "x) Z 1 1 (y"
    program.symlink_to(subprocess.run(["which", "sleep"], capture_output=True, text=True).stdout.strip())
    process = subprocess.Popen([str(program), "60"])
    try:
        assert processes.parent_of(process.pid) == os.getpid()
    finally:
        process.kill()
        process.wait()
