"""What is seen of a study from its files and logs, and what Snakemake tells when it ends."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from conftest import write_attempt, write_end
from proxycast.cluster.status import progress_screen
from proxycast.cluster.status import watch as watching
from proxycast.cluster.status.progress_screen import Follower, screen, watched
from proxycast.cluster.status.slurm_states import SlurmError, slurm_states, waiting_jobs
from proxycast.cluster.status.summary import Logged, end_of, logged_jobs, told, used
from proxycast.cluster.status.watch import Watch
from proxycast.jobs import Presence, attempts, attempts_file, identity_file
from proxycast.study.checkpoint_plan import plan_checkpoints
from proxycast.study.checkpoints import scored_checkpoints, scoring_jobs
from proxycast.study.loader import load_plan
from proxycast.study.yaml_files import read_yaml
from rich.console import Console

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "config/smoke.yaml"
NOW = datetime(2026, 11, 22, 21, 5, 33)
RESULTS = Path("results/smoke")


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """The smoke study in an empty folder, where there is no Slurm: 5 corpora of 4 proxies and 2 targets each."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").symlink_to(ROOT / "config")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return load_plan(read_yaml(SMOKE), "config/smoke.yaml")


def log_of(rule: str, name: str, said: str, started: datetime, ended: str = "", slurm_job: str = "") -> Path:
    path = RESULTS / "logs" / rule / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_attempt(path, said, started, ended, slurm_job)
    return path


@contextmanager
def locked(log: Path):
    with attempts_file(log).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_table(path: Path, rows: int, age: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame({"token": range(rows)}).write_parquet(path)
    os.utime(path, (NOW.timestamp() - age,) * 2)


def slurm(command: str, says: str) -> None:
    """A command of Slurm that tells of jobs, and writes down what it was asked."""
    path = Path("bin") / command
    path.write_text(f"#!/bin/sh\necho \"$@\" >> asked\n/bin/cat <<'END'\n{says}\nEND\n")
    path.chmod(0o755)


def look(watch: Watch):
    return watch.look(NOW.timestamp())


def phases(state) -> dict[str, tuple[int, int]]:
    return {phase.name: (phase.done, phase.total) for phase in state.phases}


def text_of(renderable, width: int = 120, height: int = 24) -> str:
    console = Console(width=width, height=height, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_nothing_is_there_at_first(plan):
    state = look(Watch(plan))
    of_checkpoints = {"weights": (0, 30), "token statistics": (0, 20), "targets": (0, 30)}
    assert phases(state) == of_checkpoints | {"proxies": (0, 5), "experiments": (0, 2)}
    assert (state.running, state.failed, state.tokens_per_second) == ([], [], None)
    assert {phase.share for phase in state.phases} == {0} and {phase.seconds_left for phase in state.phases} == {None}
    assert "no job runs" in text_of(screen("smoke", state, NOW))


def test_files_are_counted_by_phase(plan):
    parameters = {c.checkpoint: c.parameters for c in plan_checkpoints(plan)}
    (RESULTS / "suite/models/base-30k-seed0/step20").mkdir(parents=True)
    (RESULTS / "suite/models/base-30k-seed0/.step40.partial").mkdir()
    write_table(RESULTS / "token_stats/core/core-30k-seed0-step20.parquet", 10, age=5000)
    write_table(RESULTS / "token_stats/core/.core-30k-seed0-step40.0a.parquet", 10, age=1)
    write_table(RESULTS / "token_stats/core/gone-30k-seed0-step40.parquet", 10, age=1)
    (RESULTS / "token_stats/core/manifest.json").write_text("{}")
    write_table(RESULTS / "targets/core/core-30k-seed0-step20.parquet", 10, age=5000)
    write_table(RESULTS / "targets/core/core-43k-seed0-step60.parquet", 10, age=5000)
    write_table(RESULTS / "proxies/web_edu.parquet", 10, age=5000)
    watch = Watch(plan)
    state = look(watch)
    # The weights of a checkpoint that has been scored were there, wherever they are now.
    of_checkpoints = {"weights": (2, 30), "token statistics": (1, 20), "targets": (2, 30)}
    assert phases(state) == of_checkpoints | {"proxies": (1, 5), "experiments": (0, 2)}
    small, large = parameters["core-30k-seed0-step20"], parameters["core-43k-seed0-step60"]
    assert large > small
    shares = {phase.name: phase.share for phase in state.phases}
    assert shares["targets"] == pytest.approx((small + large) / (20 * small + 10 * large))
    assert shares["token statistics"] == pytest.approx(1 / 20)

    write_table(RESULTS / "token_stats/base/base-30k-seed1-step40.parquet", 10, age=0)
    (RESULTS / "targets/core/core-43k-seed0-step60.parquet").unlink()
    assert phases(look(watch)) == phases(look(Watch(plan)))
    assert phases(look(watch))["targets"] == (1, 30) and phases(look(watch))["token statistics"] == (2, 20)


def test_the_rate_is_that_of_the_running_jobs(plan):
    names = [f"core-30k-seed{seed}-step{step}" for seed in (0, 1) for step in (20, 40)]
    for name, age in zip(names, (5000, 90, 50, 10)):
        write_table(RESULTS / f"token_stats/core/{name}.parquet", 3000 if age == 5000 else 1000, age)
    log_of(
        "score", "base", "", NOW - timedelta(seconds=5000), f"=== done {(NOW - timedelta(seconds=4000)).isoformat()}"
    )
    write_table(RESULTS / "token_stats/core/.core-30k-seed1-step40.0a.parquet", 9999, age=1)  # being written
    log = log_of("score", "core", "", NOW - timedelta(seconds=100))
    watch = Watch(plan)
    assert look(watch).tokens_per_second is None  # nobody works on it any more
    with locked(log):
        state = look(watch)
    assert state.tokens_per_second == pytest.approx(3000 / 100)
    left = {phase.name: phase.seconds_left for phase in state.phases}
    assert left["token statistics"] == pytest.approx(16 / 3 * 100)  # 16 of one size are left
    assert left["proxies"] is None and left["weights"] is None
    assert "4 of 20  16 left, about 0:08:53" in " ".join(text_of(screen("smoke", state, NOW)).split("   "))


def test_a_long_running_job_is_timed_by_the_window(plan, monkeypatch):
    monkeypatch.setattr(watching, "COUNTED_TABLES", 2)
    for name, age, rows in (("20", 800, 1), ("40", 80, 50), ("60", 8, 70)):
        write_table(RESULTS / f"token_stats/core/core-30k-seed0-step{name}.parquet", rows, age)
    with locked(log_of("score", "core", "", NOW - timedelta(seconds=90000))):
        rate = look(Watch(plan)).tokens_per_second
    assert rate == pytest.approx(60 * 3 / watching.WINDOW_SECONDS)  # the newest two tell what a table holds


def test_running_failed_and_killed_jobs_are_told_apart(plan):
    log_of("train_corpus", "core", "", NOW, f"=== done {NOW.isoformat()}")
    log_of("score", "core", "error: first try", NOW, f"=== failed {NOW.isoformat()}")
    running = log_of(
        "score", "core", "\rcore-30k-seed0-step20:  3/12\rcore-30k-seed0-step40:  7/12", NOW, slurm_job="4"
    )
    log_of(
        "score", "base", "12:00:01 reading\nerror: base: \x1b[31mNaN\x1b[0m\x07", NOW, f"=== failed {NOW.isoformat()}"
    )
    log_of("score", "web_edu", "12:00:01 reading", NOW, slurm_job="77")
    log_of("join_proxies", "x", "", NOW)
    with locked(running):
        state = look(Watch(plan))
    assert [job.label for job in state.running] == ["score core"]
    assert {job.label: job.why for job in state.failed} == {
        "score base": "error: base: \x1b[31mNaN\x1b[0m\x07",
        "score web_edu": "killed (no reason known)",
        "join_proxies x": "killed (no reason known)",
    }
    shown = text_of(screen("smoke", state, NOW + timedelta(seconds=65)))
    assert "for 0:01:05" in shown and "core-30k-seed0-step40:  7/12" in shown and "Slurm job 4" in shown
    assert "score base: error: base: NaN\n  results/smoke/logs/score/base.log\n    12:00:01 reading\n" in shown
    assert "first try" not in shown and "train_corpus" not in shown and "\x1b" not in shown


def test_slurm_knows_why_a_job_was_killed(plan):
    for number, name in enumerate(["base", "core", "core_wiki_10", "web_crawl", "web_edu"], start=70):
        log_of("score", name, "reading", NOW, slurm_job=str(number))
    slurm("squeue", "70|OUT_OF_MEMORY\n71|RUNNING\n72|PENDING")
    slurm("sacct", "73|CANCELLED by 1000\n74|")
    watch = Watch(plan)
    for _ in range(2):
        state = look(watch)
        assert [job.name for job in state.running] == ["core"]
        assert {job.name: job.why for job in state.failed} == {
            "base": "killed (OUT_OF_MEMORY)",
            "web_crawl": "killed (CANCELLED)",
            "web_edu": "killed (no reason known)",
        }
    asked = [line.split()[-1] for line in Path("asked").read_text().splitlines()]
    assert asked == ["70,71,72,73,74", "73,74", "71,72,74", "74"]  # what is known to have ended is not asked again


def test_slurm_that_does_not_answer_is_no_error(plan, monkeypatch):
    assert slurm_states({"5"}) == {}
    slurm("squeue", "slurm_load_jobs error: Unable to contact slurm controller")
    assert slurm_states({"5"}) == {}
    monkeypatch.setattr("proxycast.cluster.status.slurm_states.SLURM_SECONDS", 0.1)
    Path("bin/squeue").write_text("#!/bin/sh\nexec /bin/sleep 5\n")
    assert slurm_states({"5"}) == {}


def test_logs_of_finished_jobs_are_read_once(plan, monkeypatch):
    read = []
    monkeypatch.setattr(watching, "attempts", lambda log, real=watching.attempts: read.append(log.stem) or real(log))
    log_of("score", "core", "", NOW, f"=== done {NOW.isoformat()}")
    log_of("score", "base", "", NOW)
    watch = Watch(plan)
    look(watch)
    look(watch)
    assert sorted(read) == ["base", "base", "core"]
    log_of("score", "core", "error: no", NOW, f"=== failed {NOW.isoformat()}")
    assert "score core" in [job.label for job in look(watch).failed]


def test_the_screen_fits_the_terminal(plan):
    for number in range(40):
        log_of("score", f"f{number}", "\n".join(["said"] * 30) + "\nerror: no", NOW, f"=== failed {NOW.isoformat()}")
    logs = [log_of("train_run", f"r{number}", "", NOW) for number in range(30)]
    files = [attempts_file(log).open("a") for log in logs]
    for file in files:
        fcntl.flock(file, fcntl.LOCK_EX)
    state = look(Watch(plan))
    for file in files:
        file.close()
    shown = text_of(screen("smoke", state, NOW, height=50), height=50)
    assert len(shown.splitlines()) <= 50
    assert "30 jobs run, 20 not shown" in shown and "40 jobs failed" in shown and " more, such as score f" in shown
    assert text_of(screen("smoke", state, NOW)).count("error: no\n  results") == 40


def test_once_prints_and_writes_nothing(plan):
    failed = log_of("score", "base", "error: base: no room", NOW, f"=== failed {NOW.isoformat()}")
    write_table(RESULTS / "token_stats/core/core-30k-seed0-step20.parquet", 10, age=1)

    def files() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in Path().rglob("*")}

    before = files()
    command = [sys.executable, "-m", "proxycast.progress", "config/smoke.yaml", "--once"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert files() == before
    assert "1 of 20" in said and f"score base: error: base: no room\n  {failed}" in said
    missing = subprocess.run([*command[:-2], "config/none.yaml", "--once"], capture_output=True, text=True)
    assert missing.returncode == 1 and missing.stderr.endswith("error: config/none.yaml: no such file\n")


# Off a terminal, and the end of a study


def complete(plan) -> None:
    """Every file that the phases count."""
    scored = scored_checkpoints(plan, plan_checkpoints(plan))
    for job, found in scoring_jobs(plan, scored).items():
        for c in found:
            Path(c.folder).mkdir(parents=True, exist_ok=True)
            if c.role != "target":
                write_table(RESULTS / f"token_stats/{job}/{c.checkpoint}.parquet", 1, age=0)
            write_table(RESULTS / f"targets/{job}/{c.checkpoint}.parquet", 1, age=0)
    for corpus in {c.corpus for c in scored}:
        write_table(RESULTS / f"proxies/{corpus}.parquet", 1, age=0)
    write_table(RESULTS / "data_selection/summary.parquet", 1, age=0)
    (RESULTS / "data_selection/pareto_frontier.png").touch()


def test_a_study_without_a_truth_ends_with_its_order(plan):
    values = {key: value for key, value in read_yaml(SMOKE).items() if key != "target"}
    ranked = load_plan(values, "config/smoke.yaml")
    assert phases(look(Watch(ranked)))["experiments"] == (0, 2)
    write_table(RESULTS / "data_selection/ranking.parquet", 1, age=0)
    (RESULTS / "data_selection/agreement_of_proxies.png").touch()
    assert phases(look(Watch(ranked)))["experiments"] == (2, 2) and phases(look(Watch(plan)))["experiments"] == (0, 2)


@pytest.fixture
def clock(monkeypatch):
    """Time that passes while `progress` sleeps; `after[seconds]` is called when they have passed."""
    start, after = NOW.timestamp(), {}
    time = SimpleNamespace(now=start, after=after)

    def sleep(seconds):
        time.now += seconds
        for due in sorted(s for s in after if s <= time.now - start):
            after.pop(due)()
        assert time.now - start < 20000, "it does not end"

    monkeypatch.setattr(progress_screen, "time", SimpleNamespace(time=lambda: time.now, sleep=sleep))
    return time


def seen(plan) -> tuple[watching.State, list[str], float]:
    """The last look, the plain lines and the seconds that `progress` took off a terminal."""
    begun, lines = progress_screen.time.time(), []
    state = watched(Watch(plan), Follower(lines.append).see)
    return state, lines, progress_screen.time.time() - begun


def read_terminal(terminal: int) -> str:
    """All that comes until the other side is closed."""
    said = b""
    with suppress(OSError):  # as Linux tells that it is closed
        while new := os.read(terminal, 65536):
            said += new
    return said.decode()


def run_progress(stdout: int = subprocess.PIPE) -> subprocess.Popen:
    slurm("squeue", "")
    path = {"PATH": f"{Path('bin').resolve()}:/usr/bin:/bin"}
    command = [sys.executable, "-m", "proxycast.progress", "config/smoke.yaml"]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=os.environ | path)


def test_a_complete_study_ends_with_status_0(plan):
    complete(plan)
    said, errors = (process := run_progress()).communicate(timeout=60)
    assert process.returncode == 0 and not errors
    assert said.rstrip().endswith("smoke: ended, all phases are complete") and "30 of 30" in said


def test_the_last_screen_stays_on_a_terminal(plan):
    complete(plan)
    terminal, other = os.openpty()
    process = run_progress(other)
    os.close(other)
    said = read_terminal(terminal)
    os.close(terminal)
    assert process.wait(60) == 0 and not process.stderr.read()
    stays = said.rpartition("\x1b[?1049l")[2]  # leaves the screen that is thrown away
    assert "30 of 30" in stays and "smoke: ended, all phases are complete" in stays


def test_failures_that_stand_end_with_status_1(plan, monkeypatch):
    log = log_of("score", "base", "error: base: NaN", NOW, f"=== failed {NOW.isoformat()}")
    monkeypatch.setattr(progress_screen, "IDLE_SECONDS", 0.0)
    said = []
    monkeypatch.setattr("builtins.print", lambda *words, **_: said.append(" ".join(map(str, words))))
    monkeypatch.setattr(progress_screen, "_print", lambda shown: said.append(text_of(shown)))
    assert progress_screen.show_progress(Path("config/smoke.yaml")) == 1
    assert f"score base: error: base: NaN\n  {log}" in said[0] and said[-1].startswith("smoke: ended with failures")


def test_a_study_with_outputs_that_are_being_made_again_has_not_ended(plan, clock):
    complete(plan)
    log = log_of("", "data_selection_figures", "", NOW)
    file = attempts_file(log).open("a")
    fcntl.flock(file, fcntl.LOCK_EX)
    assert phases(look(Watch(plan)))["experiments"] == (1, 2)

    def end():
        write_end(log, "done", NOW)
        file.close()

    clock.after[700] = end
    state, _, seconds = seen(plan)
    assert state.is_complete and 700 <= seconds < 720


@pytest.mark.parametrize(("state", "fails"), [("done", False), ("failed", True)])
def test_files_of_an_earlier_run_do_not_make_up_for_one_that_failed(plan, clock, state, fails):
    complete(plan)
    log_of("score", "base", "", NOW)  # killed
    Presence(RESULTS / "logs/snakemake.log").end(state)
    ended, _, seconds = seen(plan)
    assert ended.is_complete and ended.failed and ended.has_failed == fails
    assert (seconds >= watching.IDLE_SECONDS) == fails


def test_it_does_not_end_while_a_snakemake_queues_jobs(plan, clock):
    """Failures stand, no job runs: a Snakemake with nothing but jobs in a queue, or that waits for a retry."""
    log_of("score", "base", "error: base: NaN", NOW, f"=== failed {NOW.isoformat()}")
    snakemake = Presence(RESULTS / "logs/snakemake.log")
    assert look(Watch(plan)).snakemake_runs
    clock.after[3000] = lambda: snakemake.end("failed")
    state, lines, seconds = seen(plan)
    assert state.has_failed and 3000 + watching.IDLE_SECONDS <= seconds < 3100
    assert len(lines) == 7 and "score base: error: base: NaN" in lines[0]  # one failure, and a line every 10 minutes


def test_a_snakemake_without_locks_is_known_by_the_time_of_its_log(plan, clock, monkeypatch):
    log_of("score", "base", "error: base: NaN", NOW, f"=== failed {NOW.isoformat()}")
    log = log_of("", "snakemake", "", NOW)  # nobody holds its lock
    for second in range(0, 1000, 60):
        clock.after[second] = lambda: os.utime(attempts_file(log), (clock.now, clock.now))
    os.utime(attempts_file(log), (clock.now, clock.now))
    state, _, seconds = seen(plan)
    assert state.snakemake.state == "killed" and 1000 + watching.ALIVE_SECONDS < seconds < 1400


def test_it_waits_for_a_study_that_has_not_begun(plan, clock):
    def begin():
        complete(plan)

    clock.after[2000] = begin
    state, lines, seconds = seen(plan)
    assert state.is_complete and seconds < 2010 and 3 <= len(lines) <= 6


def test_it_does_not_end_while_jobs_wait_in_slurms_queue(plan, clock):
    """They outlive a Snakemake that is gone."""
    log_of("score", "base", "error: base: NaN", NOW, f"=== failed {NOW.isoformat()}")
    slurm("squeue", f"8|PENDING|Priority|(null)|{Path().resolve()}\n9|PENDING|Priority|(null)|/elsewhere")
    clock.after[500] = lambda: slurm("squeue", "9|PENDING|Priority|(null)|/elsewhere")
    assert 500 <= seen(plan)[2] < 520
    slurm("squeue", "")
    Path("bin/squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: no controller' >&2; exit 1\n")
    assert seen(plan)[2] == watching.IDLE_SECONDS  # Slurm has had no job from here
    Path(".snakemake/slurm_logs").mkdir(parents=True)
    clock.after[1000] = lambda: slurm("squeue", "")
    assert seen(plan)[2] > 400
    with pytest.raises(SlurmError, match="squeue: no"):
        Path("bin/squeue").write_text("#!/bin/sh\necho no >&2; exit 1\n")
        waiting_jobs(Path())


def test_it_ends_with_a_complete_study_whatever_slurm_says(plan, clock):
    """As on a machine that has squeue and no cluster."""
    complete(plan)
    slurm("squeue", "")
    Path("bin/squeue").write_text("#!/bin/sh\nexit 1\n")
    Path(".snakemake/slurm_logs").mkdir(parents=True)
    state, _, seconds = seen(plan)
    assert state.is_complete and seconds < watching.IDLE_SECONDS


def test_a_line_comes_when_something_changes_and_not_more_often_than_needed(plan, clock):
    running = log_of("score", "core", "12:00:00 reading core", NOW)

    def write():
        write_table(RESULTS / f"token_stats/core/core-30k-seed{next(seeds)}.parquet", 1, age=0)

    seeds = iter(["0-step20", "0-step40", "1-step20", "1-step40"])
    for second in (100, 105, 300, 302):
        clock.after[second] = write
    clock.after[5000] = lambda: complete(plan)
    with locked(running):
        watch, lines = Watch(plan), []
        follower = Follower(lines.append)
        while clock.now < NOW.timestamp() + 400:
            follower.see(watch.look(clock.now), clock.now)
            progress_screen.time.sleep(5)
    counts = [line.partition("token statistics ")[2].partition(",")[0].split(" (")[0] for line in lines]
    assert counts == ["0 of 20", "1 of 20", "2 of 20", "3 of 20", "4 of 20"]
    assert "1 running: score core for 0:00:00 (12:00:00 reading core)" in lines[0]


def test_a_reader_that_goes_away_and_ctrl_c_leave_no_traceback(plan):
    log_of("score", "base", "error: no", NOW, f"=== failed {NOW.isoformat()}")
    process = run_progress()
    assert "score base: error: no" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130 and not process.stderr.read()
    read, write = os.pipe()
    os.close(read)
    process = run_progress(write)
    os.close(write)
    assert (process.communicate(timeout=60)[1], process.returncode) == ("", 141)


# Stalls


def test_a_job_that_is_silent_for_much_longer_than_usual_stalls(plan):
    begun = NOW - timedelta(minutes=30)
    logs = [log_of("score", name, "reading", begun) for name in ("core", "base")] + [log_of("join", "x", "", begun)]
    for log, age in zip(logs, (720, 20, 720)):
        os.utime(attempts_file(log), (NOW.timestamp() - age,) * 2)
    for number, (seed, step) in enumerate([(0, 20), (0, 40), (1, 20)]):
        write_table(RESULTS / f"token_stats/core/core-30k-seed{seed}-step{step}.parquet", 1, age=900 - 60 * number)
    with locked(logs[0]), locked(logs[1]), locked(logs[2]):
        state = look(Watch(plan))
        assert {job.label: job.stalls for job in state.running} == {
            "score core": "stalls: nothing new for 12 min, usually 1 min",
            "score base": None,
            "join x": None,  # nothing tells what is usual
        }
        assert "stalls: nothing new for 12 min" in text_of(screen("smoke", state, NOW))
        lines = []
        follower = Follower(lines.append)
        for _ in range(2):
            follower.see(state, NOW.timestamp())
        assert [f"log: {logs[0]}" in line for line in lines] == [True, False]
        os.utime(attempts_file(logs[2]), (NOW.timestamp() - 1801,) * 2)
        os.utime(attempts_file(logs[1]), (NOW.timestamp() - 661,) * 2)  # by the steps of its rule
        stalls = {job.label: job.stalls for job in look(Watch(plan)).running}
        assert stalls["join x"] == "stalls: nothing new for 30 min" and "11 min, usually 1" in stalls["score base"]
        write_table(RESULTS / "targets/core/core-30k-seed0-step20.parquet", 1, age=5)
        assert {job.label for job in look(Watch(plan)).running if not job.stalls} == {"score core"}


def test_that_a_worker_waits_for_one_that_hangs_is_no_news(plan):
    hangs = "(EngineCore) INFO No available shared memory broadcast block found in 60 seconds. This typically happens"
    log = log_of("score", "core", f"reading\n{hangs}", NOW - timedelta(minutes=40))
    os.utime(attempts_file(log), (NOW.timestamp(),) * 2)
    with locked(log):
        assert look(Watch(plan)).running[0].stalls == "stalls: nothing new for 40 min"


# What Snakemake tells when it ends.


def test_the_time_of_every_attempt_counts(plan):
    """Three attempts of one job, one of them before this run; a killed one counts to the last time in its log."""
    first = datetime(2026, 11, 21, 23, 0)
    log = log_of("score", "core", "error: no", first, f"=== failed {(first + timedelta(hours=1)).isoformat()}")
    second = datetime(2026, 11, 22, 23, 30)
    log_of(
        "score", "core", "23:40:00 reading\n  0%|  \n00:30:00 token_stats of x written\n00:31:02-half a line", second
    )
    third = datetime(2026, 11, 23, 2, 0)
    log_of("score", "core", "", third, f"=== done {(third + timedelta(hours=2)).isoformat()}")
    other = log_of("join_proxies", "x", "", third, f"=== done {(third + timedelta(hours=3)).isoformat()}")
    benchmarks = [Path("score.tsv"), Path("join.tsv"), Path("old.tsv")]
    for path, peak in zip(benchmarks, ("1234.5", "-", "99999")):
        path.write_text(f"s\th:m:s\tmax_rss\n5\t0:00:05\t{peak}\n")
    os.utime("old.tsv", (first.timestamp(),) * 2)
    jobs = [
        Logged("score", "job=core", log, 2, benchmarks[0]),
        Logged("join_proxies", "", other, 0, benchmarks[1]),
        Logged("train_run", "run=a", Path("never.log"), 8, benchmarks[2]),
    ]
    since = datetime(2026, 11, 22, 23, 0)
    for path in benchmarks[:2]:
        os.utime(path, (since.timestamp() + 5,) * 2)
    lines = used(jobs, since)
    assert lines[:2] == ["score: 1 jobs, 3:00:00", "join_proxies: 1 jobs, 3:00:00"]
    assert "in all 2 jobs" in lines[2]
    assert "6:00:00 of jobs and 6.00 GPU-hours, with earlier runs 8.00 GPU-hours" in lines[2]
    assert lines[3:] == ["largest host memory: 1,234 MB, score job=core"]


def test_gpus_are_read_from_either_dialect():
    def job(**resources):
        rule, wildcards = SimpleNamespace(name="score"), {"job": "core"}
        kind = dict(rule=rule, wildcards_dict=wildcards, log=["a.log"], group=None, benchmark=None)
        return SimpleNamespace(**kind, resources=resources)

    jobs = [job(gres="gpu:h100:2"), job(gpu=4), job(mem_mb=5), SimpleNamespace(log=[])]
    assert [(found.rule, found.name, found.gpus) for found in logged_jobs(jobs)] == [
        ("score", "job=core", gpus) for gpus in (2, 4, 0)
    ]


def test_a_killed_attempt_that_said_nothing_took_no_time(plan):
    (attempt,) = attempts(log_of("score", "core", "nothing with a time", NOW))
    assert attempt.state == "killed" and end_of(attempt) == NOW


@pytest.mark.parametrize(
    "said", ["99:99:99 x", "24:00:00 x", "12:60:00 x", "\u0661\u0662:00:00 x", "23:59:59 a\n00:00:00 b\n" * 9999]
)
def test_times_in_a_log_may_be_any(plan, said):
    (attempt,) = attempts(log_of("score", "core", said, NOW))
    assert 0 <= (end_of(attempt) - NOW).total_seconds() < 2 * 366 * 24 * 3600
    *_, attempt = attempts(log_of("score", "core", said, datetime(2199, 12, 31)))
    assert end_of(attempt) >= attempt.started


def test_forged_attempts_may_take_any_time(plan):
    log = log_of("score", "core", "x", datetime(2199, 12, 31), "=== done 2199-12-31T00:00:00")
    job = Logged("score", "core", log, 1, None, "", False)
    begun, ended = filter(None, identity_file(log).read_text().split("\n"))
    attempt, records = json.loads(begun)["attempt"], []
    ended = ended.replace("2199-12-31", "1980-01-01")
    for number in range(9000):
        records += [begun.replace(attempt, f"{number:016x}"), ended.replace(attempt, f"{number:016x}")]
    forged = "\n".join(records)
    identity_file(log).write_text(forged)
    assert "in all" in " ".join(used([job] * 3, NOW))


def test_what_lies_among_logs_and_tables_may_be_anything(plan):
    log = log_of("score", "core", "x", NOW)
    attempts_file(log).with_name("nowhere.attempts").symlink_to("absent")
    (RESULTS / "token_stats/core").mkdir(parents=True)
    pipe = RESULTS / "token_stats/core/core-30k-seed0-step20.parquet"
    os.mkfifo(pipe)
    os.utime(pipe, (NOW.timestamp() + 1,) * 2)
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waits for ever"))
    signal.alarm(60)
    try:
        assert [job.name for job in look(Watch(plan)).failed] == ["core"]
    finally:
        signal.alarm(0)


def test_failures_name_job_reason_and_log(plan):
    slurm("squeue", "70|TIMEOUT")
    before = NOW - timedelta(hours=1)
    bad = log_of("score", "base", "\n".join(map(str, range(30))) + "\nerror: NaN", NOW, f"=== failed {NOW.isoformat()}")
    killed = log_of("score", "core", "reading", NOW, slurm_job="70")
    old = log_of("score", "web_edu", "error: of yesterday", before, f"=== failed {before.isoformat()}")
    failed = [Logged("score", f"job={log.stem}", log, 0, None) for log in (bad, killed, old)]
    text = "\n".join(told([*failed, Logged("score", "job=new", Path("new.log"), 0, None)], NOW, RESULTS))
    assert text.splitlines()[:3] == ["score job=base: error: NaN", f"  log: {bad}", "    21"]
    assert f"score job=core: killed (TIMEOUT)\n  log: {killed}\n    reading\n" in text
    assert "score job=web_edu: ended before its script began" in text and "yesterday" not in text
    assert text.endswith("score job=new: ended before its script began; what Snakemake said of it stands above")


def slurm_log(folder: str, number: str, said: str, age: float) -> Path:
    path = Path(".snakemake/slurm_logs") / folder / f"{number}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(said)
    os.utime(path, (NOW.timestamp() - age,) * 2)
    return path


def test_slurms_own_log_tells_of_a_job_that_ended_before_its_script(plan):
    since = NOW - timedelta(minutes=10)
    slurm_log("rule_score/base", "70", "of yesterday", age=86400)
    slurm_log("rule_score/base", "71", "first", age=500)
    said = "\n".join(map(str, range(20))) + "\n\nslurmstepd: \x1b[31merror\x1b[0m: execve(): python3: No such file\n"
    newest = slurm_log("rule_score/base", "72", said, age=100)
    slurm_log("rule_score/core", "73", "of the first attempt, that had begun", age=50)
    begun = log_of("score", "core", "error: NaN", NOW, f"=== failed {NOW.isoformat()}", slurm_job="73")
    later = slurm_log("rule_score/web_edu", "75", "bad interpreter", age=40)
    again = log_of("score", "web_edu", "error: first", NOW, f"=== failed {NOW.isoformat()}", slurm_job="74")
    slurm_log("rule_score/web_crawl", "70", "of yesterday", age=86400)
    failed = [
        Logged("score", f"job={log.stem}", log, 0, None, f"rule_score/{log.stem}/*.log")
        for log in (RESULTS / "logs/score/base.log", begun, again, RESULTS / "logs/score/web_crawl.log")
    ]
    text = "\n".join(told(failed, since, RESULTS))
    assert text.startswith(f"score job=base: ended before its script began\n  Slurm's log: {newest}\n    11\n")
    assert "    slurmstepd: error: execve(): python3: No such file\n" in text
    assert f"score job=core: error: NaN\n  log: {begun}" in text and "that had begun" not in text
    assert f"score job=web_edu: ended before its script began\n  Slurm's log: {later}\n    bad interpreter" in text
    assert text.endswith("score job=web_crawl: ended before its script began; what Snakemake said of it stands above")
    assert "yesterday" not in text
    of_group = [
        Logged("score", f"job={log.stem}", log, 0, None, "group_scores_*/*.log", True) for log in (begun, again)
    ]
    newest = slurm_log("group_scores_score", "90", "of another job of the group", age=1)
    assert "of another job" not in "\n".join(told(of_group, since, RESULTS))
    before = [Logged("score", "job=new", Path("new.log"), 0, None, "group_scores_*/*.log", True)]
    assert str(newest) in told(before, since, RESULTS)[0]


def test_slurms_logs_are_looked_for_where_its_plugin_puts_them():
    def folder(group=None, **wildcards):
        rule = SimpleNamespace(name="score")
        job = dict(rule=rule, wildcards_dict=wildcards, log=["a.log"], resources={}, benchmark=None, group=group)
        return logged_jobs([SimpleNamespace(**job)])[0].slurm_logs

    assert folder(job="core", part="a/b") == "rule_score/core_a_b/*.log" and folder() == "rule_score//*.log"
    assert folder(group="scores", job="core") == "group_scores_*/*.log"


HOSTILE_LINES = [
    "\x1b[2J\x1b[1;1Herror: all is well",
    "\x1b]0;title\x07\x1b]52;c;cm0gLXJm\x07",  # the title, the clipboard
    "[bold red]error[/bold red] [link=file:///etc]x[/link] [/]",
    "\x9b31m\x90q\x9c",  # controls of eight bits
    "a\u202eb\u2066c\u200bd",  # reads otherwise than it is
    "\x1b[31mred\x1b[0m",
]


@pytest.mark.parametrize("line", HOSTILE_LINES)
def test_nothing_that_a_log_says_moves_a_terminal(plan, line):
    """Nor is it markup of the screen; nor what Slurm's own logs say, nor the names of files in somebody's results."""
    started = NOW - timedelta(minutes=1)
    failed = log_of("score", "base", f"error: {line}\nerror: {line}", started, f"=== failed {NOW.isoformat()}")
    odd = log_of("score", line.replace("/", "_"), line, started, f"=== failed {NOW.isoformat()}")
    runs = log_of("score", "core", line, started)
    with locked(runs):
        state = look(Watch(plan))
        lines = text_of(screen("smoke", state, NOW), width=300).split("\n")
        Follower(lines.append).see(state, NOW.timestamp())
        lines.append(progress_screen.running_line(state.running, NOW, 3))
    own = slurm_log("rule_score/base", "7", line, age=0)
    logged = [Logged("score", "corpus=base", failed, 0, None), Logged("score", f"corpus={line}", odd, 0, None)]
    missing = Logged("score", "corpus=web", RESULTS / "logs/score/web.log", 0, None, "rule_score/base/*.log")
    lines += "\n".join(told([*logged, missing], started - timedelta(hours=1), RESULTS)).split("\n")
    assert own.is_file() and len(lines) > 10
    for said in lines:
        assert said.isprintable(), repr(said)
    if "[bold" in line:
        assert sum(line in said for said in lines) > 5
