"""Room on the disk among downloads that run at the same time."""

import errno
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import hub_repository
import pytest
from hub_repository import FILE, NEEDED, OPTIONS, REPO, REVISIONS, RUN, contents, expected_run, run_bytes
from hub_stub import NO_FILE, Status, commit_of, make_cache
from proxycast.config.study import HubOptions
from proxycast.options import InputError
from proxycast.weights import disk_room
from proxycast.weights.hub_runs import fetch_run

server, waits = hub_repository.server, hub_repository.waits


def reserved_files(folder):
    """What `fetch_run` leaves in `folder` besides, where there is a bound."""
    return {".planned_bytes": (folder / ".planned_bytes").read_bytes()}


def left_behind(folder, size):
    """A folder with `size` bytes of weights, as a download leaves it behind."""
    (folder / "step5").mkdir(parents=True)
    (folder / "step5" / "model.safetensors").write_bytes(bytes(size))
    (folder / ".planned_bytes").write_text("999999")
    return folder


@pytest.fixture
def clock(monkeypatch):
    """`time.sleep` moves `time.monotonic`; `clock.at[seconds]` is called at that time. Ends a wait of two days."""
    times = SimpleNamespace(now=0.0, at={})

    def sleep(seconds):
        times.now += seconds
        assert times.now < 2 * 24 * 3600, "waits for ever"
        for when in [when for when in times.at if when <= times.now]:
            times.at.pop(when)()

    monkeypatch.setattr(time, "monotonic", lambda: times.now)
    monkeypatch.setattr(time, "sleep", sleep)
    return times


PATIENCE = disk_room.Patience()


def reserve(folder, planned, disk_gb, patience=PATIENCE):
    return disk_room.reserved_room(folder.with_name(f".{folder.name}.partial"), folder, planned, disk_gb, patience)


def test_a_run_larger_than_the_bound(server, tmp_path):
    options = HubOptions(disk_gb=(run_bytes() - 1) / 1e9)
    with pytest.raises(InputError, match=r"one training run take 0.00 GB, more than hub.disk_gb 8.*e-05"):
        fetch_run(RUN, tmp_path / "a", options)
    fetch_run(RUN, tmp_path / "a", HubOptions(disk_gb=run_bytes() / 1e9))


def test_a_run_waits_for_room(server, tmp_path, monkeypatch, caplog):
    options = HubOptions(disk_gb=1.5 * run_bytes() / 1e9)
    fetch_run(RUN, tmp_path / "a", options)
    looks = []

    def look(seconds):
        looks.append((tmp_path / "b").exists())
        if len(looks) == 3:
            shutil.rmtree(tmp_path / "a")  # scored

    monkeypatch.setattr(time, "sleep", look)
    with caplog.at_level(logging.INFO):
        fetch_run(RUN, tmp_path / "b", options)
    assert looks == [False] * 3
    assert contents(tmp_path / "b") == expected_run() | reserved_files(tmp_path / "b")
    said = [record.getMessage() for record in caplog.records if "waiting" in record.getMessage()]
    assert len(said) == 1 and f"hub.disk_gb; taken: {tmp_path / 'a'} 0.00 GB, which waits to be scored" in said[0]


def test_it_says_again_that_it_waits(tmp_path, clock, caplog):
    left_behind(tmp_path / "a", 9)
    clock.at[190] = lambda: shutil.rmtree(tmp_path / "a")
    with caplog.at_level(logging.INFO), reserve(tmp_path / "b", 9, 10e-9):
        assert caplog.text.count("waiting") == 4  # at 0, 60, 120 and 180 s


def test_a_failed_run_does_not_wait_for_itself(server, tmp_path):
    options = HubOptions(disk_gb=run_bytes() / 1e9, retries=0)
    server.fail(FILE, Status(500))
    with pytest.raises(InputError):
        fetch_run(RUN, tmp_path / "a", options)
    assert (tmp_path / ".a.partial" / "step5" / "config.json").is_file()
    fetch_run(RUN, tmp_path / "a", options)
    fetch_run(RUN, tmp_path / "a", options)  # nor for what it makes anew


def test_a_failed_download_takes_what_lies_there(server, tmp_path, clock):
    """Not what it had planned: nobody will download that, perhaps never."""
    options = HubOptions(disk_gb=1.6 * run_bytes() / 1e9, retries=0)  # half of one run and another fit, two do not
    server.fail(f"{commit_of(REPO, REVISIONS['main'])}/model.safetensors", NO_FILE)
    with pytest.raises(InputError, match="404"):
        fetch_run(RUN, tmp_path / "a", options)
    fetch_run(RUN, tmp_path / "b", options)
    assert clock.now == 0
    with pytest.raises(InputError, match="no room in hub.disk_gb"):
        fetch_run(RUN, tmp_path / "c", options)
    shutil.rmtree(tmp_path / "b")
    fetch_run(RUN, tmp_path / "a", options)


HOLDS = """
import sys, time
from pathlib import Path
from proxycast.weights import disk_room
partial, folder = Path(sys.argv[1]), Path(sys.argv[2])
with disk_room.reserved_room(partial, folder, 9, 10e-9, disk_room.Patience()):
    print("holds", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has reserved 9 of 10 bytes for run a."""
    command = [sys.executable, "-c", HOLDS, tmp_path / ".a.partial", tmp_path / "a"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"holds\n"
        yield process
        process.kill()


def test_a_living_download_is_waited_for_and_a_killed_one_is_not(tmp_path, clock, holder, caplog):
    def kill():
        holder.send_signal(signal.SIGKILL)
        holder.wait()

    clock.at[36_000] = kill
    with caplog.at_level(logging.INFO), reserve(tmp_path / "b", 9, 10e-9):
        assert 36_000 <= clock.now < 36_000 + 2 * disk_room.POLL_SECONDS
    assert f"{tmp_path / '.a.partial'} 0.00 GB, which is being downloaded" in caplog.text
    with reserve(tmp_path / "c", 10, 10e-9):
        pass


@pytest.mark.parametrize("how", [fcntl.LOCK_SH, fcntl.LOCK_EX])
@pytest.mark.parametrize("own", [False, True])
def test_what_any_reader_may_lock_is_not_waited_for(tmp_path, clock, how, own):
    """A reservation in results of somebody else, of the run itself or of one beside it, that others may open."""
    planned = tmp_path / f".{'b' if own else 'a'}.partial/{disk_room.PLANNED_BYTES}"
    planned.parent.mkdir()
    planned.write_text("9")
    planned.chmod(0o644)
    with planned.open() as file:
        fcntl.flock(file, how)
        signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waits for ever"))
        signal.alarm(20)
        try:
            with reserve(tmp_path / "b", 9, 10e-9):
                assert (
                    clock.now == 0
                    and (tmp_path / ".b.partial" / disk_room.PLANNED_BYTES).stat().st_mode & 0o777 == 0o600
                )
        finally:
            signal.alarm(0)


def test_what_is_no_file_reserves_nothing(tmp_path, clock):
    for run, make in {"a": os.mkdir, "b": os.mkdir, "c": os.mkfifo}.items():
        (tmp_path / f".{run}.partial").mkdir()
        make(tmp_path / f".{run}.partial" / disk_room.PLANNED_BYTES)
    for run in ("b", "c"):
        with reserve(tmp_path / run, 9, 10e-9):
            assert clock.now == 0


def test_a_run_that_another_process_downloads_is_waited_for(tmp_path, clock, holder):
    clock.at[100] = lambda: holder.communicate(b"")
    with reserve(tmp_path / "a", 1, 10e-9):  # it would fit
        assert 100 <= clock.now < 100 + 2 * disk_room.POLL_SECONDS


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("a", "waits to be scored"),  # its scoring failed for good, or the study has it no more
        (".a.partial", "is left of a download that does not run"),
    ],
)
def test_room_that_never_comes(tmp_path, clock, name, state):
    left = left_behind(tmp_path / name, 9)
    with pytest.raises(InputError) as error, reserve(tmp_path / "b", 9, 10e-9):
        pass
    assert str(error.value) == (
        f"{tmp_path / 'b'}: its 0.00 GB have no room in hub.disk_gb 1e-08, and in 10 minutes nothing ran that could "
        f"make room. Taken: {left} 0.00 GB, which {state}. Mend what failed and run again: the runs of the study are "
        "then finished, scored and removed. Remove the folders of runs that the study has no more, or raise hub.disk_gb"
    )
    assert 600 <= clock.now < 600 + 2 * disk_room.POLL_SECONDS
    assert not (tmp_path / ".b.partial").exists()


def test_patience_begins_anew_with_every_change(tmp_path, clock):
    for name in "acd":
        left_behind(tmp_path / name, 9)
    clock.at[500] = lambda: shutil.rmtree(tmp_path / "c")
    clock.at[1000] = lambda: shutil.rmtree(tmp_path / "d")
    with pytest.raises(InputError, match="Taken: [^;]*/a 0.00 GB, which waits"), reserve(tmp_path / "b", 9, 10e-9):
        pass
    assert 1600 <= clock.now < 1600 + 2 * disk_room.POLL_SECONDS


def test_patience_lasts_while_others_run(tmp_path, clock):
    left_behind(tmp_path / "a", 9)
    patience = disk_room.Patience(600, lambda: clock.now < 5000)
    with pytest.raises(InputError, match="no room"), reserve(tmp_path / "b", 9, 10e-9, patience):
        pass
    assert 5000 + 600 - 2 * disk_room.SAY_SECONDS <= clock.now < 5000 + 600 + 2 * disk_room.POLL_SECONDS


def test_what_the_hub_cache_holds_takes_no_room(server, tmp_path, clock):
    """It stays when the run is removed. What is linked within the run counts once."""
    small = sum(map(len, NEEDED.values()))
    make_cache(tmp_path / "cache", REPO, {"main": REVISIONS["main"]})
    options = HubOptions(disk_gb=2 * (40_000 + small) / 1e9)  # the weights of each second checkpoint are in the cache
    fetch_run(RUN, tmp_path / "runs" / "a", options)
    assert disk_room._bytes_of_its_own(tmp_path / "runs" / "a") == 40_000 + small
    fetch_run(RUN, tmp_path / "runs" / "b", options)
    assert clock.now == 0


def test_a_run_that_is_removed_while_others_look(tmp_path, monkeypatch):
    left_behind(tmp_path / "a", 9)
    lstat = os.lstat

    def removed(path, **kwargs):
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
        return lstat(path, **kwargs)

    monkeypatch.setattr(os, "lstat", removed)
    with reserve(tmp_path / "b", 9, 9e-9):
        assert (tmp_path / ".b.partial" / ".planned_bytes").read_text() == "9\n"


@pytest.mark.filterwarnings("ignore:flock not supported")  # of huggingface_hub's own locks
def test_a_file_system_without_locks(server, tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    fetch_run(RUN, tmp_path / "a", OPTIONS)
    with pytest.raises(InputError, match="hub.disk_gb needs file locks, which this file system lacks"):
        fetch_run(RUN, tmp_path / "b", HubOptions(disk_gb=1))


def test_runs_at_the_same_time_never_take_more(tmp_path, monkeypatch):
    monkeypatch.undo()  # real sleep
    monkeypatch.setattr(disk_room, "POLL_SECONDS", 0.002)
    read = disk_room._taken_by_others

    def slowly(partial, folder):
        found = read(partial, folder)
        time.sleep(0.005)  # time enough for another one to come between
        return found

    monkeypatch.setattr(disk_room, "_taken_by_others", slowly)
    at_a_time, most, lock = [0], [0], threading.Lock()

    def job(i):
        with reserve(tmp_path / str(i), 4, 10e-9):
            with lock:
                at_a_time[0] += 1
                most[0] = max(most[0], at_a_time[0])
            time.sleep(0.3)  # so long that another one has looked
            with lock:
                at_a_time[0] -= 1
        shutil.rmtree(tmp_path / f".{i}.partial")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(job, range(8)))
    assert most == [2]


def test_a_disk_without_modes_has_locks(tmp_path, monkeypatch):
    """Only another user's lock is refused."""
    (tmp_path / ".lock").touch(0o755)
    (tmp_path / ".lock").chmod(0o755)

    def refused(*arguments):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refused)
    with disk_room.folder_lock(tmp_path):
        pass
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(InputError, match=r"\.lock: is private to another user"), disk_room.folder_lock(tmp_path):
        pass


def test_a_lock_is_its_users_alone(server, tmp_path, monkeypatch):
    (tmp_path / ".lock").touch(0o644)
    fetch_run(RUN, tmp_path / "a", HubOptions(disk_gb=1))
    assert (tmp_path / ".lock").stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(disk_room, "ROOM_LOCK_SECONDS", 0.1)
    with (tmp_path / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"\.lock: locked by another process"):
            fetch_run(RUN, tmp_path / "b", HubOptions(disk_gb=1))
