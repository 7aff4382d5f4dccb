"""What the console of Snakemake tells while jobs run."""

import fcntl
import logging
import os
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import write_attempt
from proxycast.cluster.status import console
from proxycast.cluster.status.console import QUEUE_SECONDS, REPEAT_SECONDS, Progress
from proxycast.cluster.status.slurm_states import SlurmError, require_accounting
from proxycast.cluster.status.watch import Watch
from proxycast.jobs import attempts, attempts_file
from proxycast.study.checkpoint_plan import plan_checkpoints
from proxycast.study.loader import load_plan
from proxycast.study.yaml_files import read_yaml
from snakemake.logging import DefaultFilter
from snakemake.settings.enums import Quietness

ROOT = Path(__file__).parents[2]
RESULTS = Path("results/smoke")
NOW = datetime(2026, 11, 22, 21, 5, 33)


class Records(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record):
        self.records.append(record)

    @property
    def lines(self) -> list[str]:
        return [record.getMessage() for record in self.records]

    @property
    def warnings(self) -> list[str]:
        return [record.getMessage() for record in self.records if record.levelno >= logging.WARNING]


@pytest.fixture
def records():
    return Records()


@pytest.fixture
def progress(tmp_path, monkeypatch, records):
    """Of the smoke study in an empty folder, through a Slurm that the tests' stubs make up."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").symlink_to(ROOT / "config")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    plan = load_plan(read_yaml(Path("config/smoke.yaml")), "config/smoke.yaml")
    logger = logging.Logger("test")
    logger.addHandler(records)
    settings = SimpleNamespace()
    scheduler = SimpleNamespace(running=set())
    workflow = SimpleNamespace(touch=False, local_exec=False, executor_settings=settings, scheduler=scheduler)
    return Progress(workflow, plan, plan_checkpoints(plan), logger)


def slurm(command: str, says: str, status: int = 0) -> None:
    path = Path("bin") / command
    path.write_text(f"#!/bin/sh\n/bin/cat <<'END' >&{2 if status else 1}\n{says}\nEND\nexit {status}\n")
    path.chmod(0o755)


def waits(number: int, reason: str, comment: str = "(null)", state: str = "PENDING") -> str:
    return f"{number}|{state}|{reason}|{comment}|{Path().resolve()}"


def running(rule: str, name: str, said: str, age: float = 0) -> None:
    """A job that holds the lock of its log as long as the test runs."""
    path = RESULTS / "logs" / rule / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_attempt(path, said, NOW - timedelta(seconds=age))
    file = attempts_file(path).open("a")
    os.utime(attempts_file(path), (NOW.timestamp() - age,) * 2)
    fcntl.flock(file, fcntl.LOCK_EX)
    held.append(file)


held: list = []


@pytest.fixture(autouse=True)
def release():
    yield
    while held:
        held.pop().close()


def look(progress: Progress, watch: Watch, minutes: float) -> None:
    progress.look(watch, NOW.timestamp() + 60 * minutes)


@pytest.fixture
def watch(progress):
    progress._moved = NOW.timestamp()
    return Watch(progress.plan, progress.checkpoints)


# Progress


def test_what_has_changed_is_told_in_two_lines(progress, watch, records):
    look(progress, watch, 0)
    assert records.lines == [
        "21:05:33 weights 0 of 30, token statistics 0 of 20, targets 0 of 30, proxies 0 of 5, experiments 0 of 2"
    ]
    look(progress, watch, 1)
    assert len(records.lines) == 1
    running("score", "core", "12:00:00 reading\n\r core-30k:  10%|█▏      | 3/12 [00:37<05:35]", age=40)
    look(progress, watch, 2)
    assert records.lines[2:] == ["         1 running: score core for 0:02:40 (core-30k:  10% 3/12 [00:37<05:35])"]
    look(progress, watch, 3)
    assert len(records.lines) == 3
    for name in ("base", "web_edu", "web_crawl"):
        running("score", name, "", age=10)
    look(progress, watch, 4)
    assert records.lines[-1].startswith("         4 running: score core") and records.lines[-1].endswith("; 1 more")
    assert not records.warnings


@pytest.mark.parametrize(
    ("quiet", "shown"), [(set(), 2), ({Quietness.RULES}, 2), ({Quietness.PROGRESS}, 1), ({Quietness.ALL}, 0)]
)
def test_quiet_leaves_out_progress_and_keeps_warnings(progress, records, quiet, shown):
    records.addFilter(DefaultFilter(quiet, debug_dag=False, verbose=False, dryrun=False, printshellcmds=False))
    progress._tell(logging.INFO, "progress")
    progress._tell(logging.WARNING, "a hindrance")
    assert len(records.lines) == shown


def test_the_thread_tells_until_the_end_and_not_after(progress, records, monkeypatch):
    monkeypatch.setattr(console, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(console, "LOOK_SHARE", 0)
    progress.start()
    log = RESULTS / "logs/snakemake.log"
    while not records.lines:
        time.sleep(0.01)
    assert [a.state for a in attempts(log)] == ["running"]
    progress.end("failed")
    assert [a.state for a in attempts(log)] == ["failed"]
    told = len(records.lines)
    (RESULTS / "proxies").mkdir()
    (RESULTS / "proxies/core.parquet").touch()
    progress._thread.join(20)
    assert not progress._thread.is_alive() and len(records.lines) == told


def test_a_look_that_takes_long_does_not_hold_up_the_end(progress, records, monkeypatch):
    monkeypatch.setattr(console, "LOOK_SECONDS", 0.01)
    stuck, go = threading.Event(), threading.Event()
    monkeypatch.setattr(Watch, "look", lambda *_, **__: stuck.set() or go.wait(30))
    progress.start()
    assert stuck.wait(30) and progress._thread.daemon
    began = time.monotonic()
    progress.end("done")
    assert time.monotonic() - began < 5
    go.set()
    progress._thread.join(20)
    assert not records.lines  # that the look broke is of no interest any more


def test_a_look_that_breaks_is_told_once_and_breaks_nothing_else(progress, records, monkeypatch):
    monkeypatch.setattr(console, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(Watch, "look", lambda *_, **__: {}["key"])
    progress.start()
    progress._thread.join(30)
    assert records.warnings == ["the console tells of no progress any more: KeyError: 'key'"]
    progress.end("done")


def test_a_disk_without_room_breaks_nothing(progress, records, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(console, "Presence", full)
    progress.start()
    progress.end("done")
    assert len(records.warnings) == 1 and "No space left on device" in records.warnings[0]


def test_nothing_is_told_where_files_are_only_touched(progress):
    progress.workflow.touch = True
    progress.start()
    progress.end("done")
    assert not progress._thread.is_alive() and not RESULTS.exists()


# What hinders a study


def hindrances(progress, watch, records, minutes) -> list[str]:
    """The warnings of looks at these minutes, without the time."""
    before = len(records.warnings)
    for minute in minutes:
        look(progress, watch, minute)
    return [line.partition(" ")[2] for line in records.warnings[before:]]


def test_held_jobs_are_told_after_some_minutes_and_rarely_again(progress, watch, records):
    jobs = [waits(n, "JobHeldUser", f"rule_score_wildcards_{n}") for n in range(7)]
    slurm("squeue", "\n".join([*jobs, waits(8, "Priority"), waits(9, "Resources")]))
    assert hindrances(progress, watch, records, range(5)) == []
    told = hindrances(progress, watch, records, range(5, 60))
    assert [line for line in told if "JobHeldUser" in line] == [
        "nothing new for 5 min: 7 jobs wait in Slurm's queue for the reason JobHeldUser: rule_score_wildcards_0, "
        "rule_score_wildcards_1, rule_score_wildcards_2, rule_score_wildcards_3, rule_score_wildcards_4 and 2 more; "
        "release them: scontrol release 0,1,2,3,4,5,6"
    ]
    (again,) = [line for line in hindrances(progress, watch, records, range(60, 120)) if "JobHeldUser" in line]
    assert again.startswith(f"nothing new for {(QUEUE_SECONDS + REPEAT_SECONDS) / 60:.0f} min: 7 jobs")


@pytest.mark.parametrize(
    ("reason", "state", "words"),
    [
        ("JobHeldAdmin", "PENDING", "an administrator holds them"),
        ("PartitionDown", "PENDING", "see: scontrol show job 5"),
        (
            "(ReqNodeNotAvail, UnavailableNodes:node7)",
            "PENDING",
            "for the reason ReqNodeNotAvail, UnavailableNodes:node7",
        ),
        ("launch failed requeued held", "REQUEUE_HOLD", "scontrol release 5"),
        ("QOSMaxWallDurationPerJobLimit", "PENDING", "rule_score_wildcards_core"),
        ("AssocGrpCPUMinutesLimit", "PENDING", "rule_score_wildcards_core"),
    ],
)
def test_reasons_that_do_not_pass_are_told_while_others_move(progress, watch, records, reason, state, words):
    slurm("squeue", waits(5, reason, "rule_score_wildcards_core", state))
    Path(RESULTS, "proxies").mkdir(parents=True)
    for minute in range(6):
        look(progress, watch, minute)
        (RESULTS / f"proxies/{progress.plan.corpora[minute % 5].name}.parquet").touch()
        os.utime(RESULTS / "proxies", ns=(minute + 1,) * 2)
    (line,) = records.warnings
    assert words in line and "nothing new" not in line
    slurm("squeue", "")
    assert hindrances(progress, watch, records, [10]) == []


def test_a_queue_that_moves_or_passes_by_itself_is_not_told(progress, watch, records):
    passing = ["Priority", "Resources", "QOSMaxJobsPerUserLimit", "AssocGrpCpuLimit"]
    queue = [waits(number, reason) for number, reason in enumerate(passing)]
    slurm("squeue", "\n".join([*queue, "7|PENDING|JobHeldUser|(null)|/elsewhere"]))
    running("score", "core", "")
    assert not [line for line in hindrances(progress, watch, records, range(25)) if "queue" in line]


def test_a_queue_that_does_not_move_is_told_with_slurms_reason(progress, watch, records):
    slurm("squeue", "\n".join([waits(5, "Priority"), waits(6, "Priority")]))
    assert hindrances(progress, watch, records, range(0, 61)) == [
        "nothing new for 10 min: 2 jobs wait in Slurm's queue for the reason Priority: 5, 6; see: scontrol show job 5"
    ]


def test_a_slurm_that_does_not_answer_is_told(progress, watch, records):
    slurm("squeue", "slurm_load_jobs error: Unable to contact slurm controller", status=1)
    (line,) = hindrances(progress, watch, records, range(30))
    assert "Slurm does not answer, Snakemake waits for it (squeue: " in line
    assert line.endswith("(squeue: slurm_load_jobs error: Unable to contact slurm controller)")


def test_jobs_that_nobody_knows_of_any_more_are_told(progress, watch, records):
    slurm("squeue", "")
    progress.workflow.scheduler.running = {Path("score"), Path("train_run")}  # have names too
    assert hindrances(progress, watch, records, range(30)) == [
        "nothing new for 10 min: no job runs or waits in a queue, but Snakemake waits for the end of score, train_run"
    ]


def test_a_worker_that_hangs_is_told(progress, watch, records):
    running("score", "core", "reading", age=1500)
    (line,) = hindrances(progress, watch, records, range(31))
    assert line.startswith("score core stalls: nothing new for ") and line.endswith("logs/score/core.log")


# sacct without accounting


class Plugin(SimpleNamespace):
    is_query_tool_available = staticmethod(lambda tool: (Path("bin") / tool).exists())


@pytest.mark.parametrize(
    ("command", "kept", "advice"),
    [
        ("sacct", 300, "slurm-status-command is sacct; set it to squeue in slurm/config.yaml"),
        ("squeue", 20, "squeue forgets ended jobs after 20 s (MinJobAge)"),
        ("squeue", None, "squeue forgets"),
        ("squeue", 300, None),
    ],
)
def test_a_sacct_that_does_not_answer_is_told_at_once(progress, records, monkeypatch, command, kept, advice):
    monkeypatch.setitem(console.sys.modules, "snakemake_executor_plugin_slurm", Plugin(get_min_job_age=lambda: kept))
    progress.workflow.executor_settings = SimpleNamespace(status_command=command, init_seconds_before_status_checks=10)
    slurm("sacct", "Slurm accounting storage is disabled", status=1)
    progress._require_status()
    if advice is None:
        assert not records.warnings
    else:
        (line,) = records.warnings
        assert line.startswith("Snakemake will not learn when jobs end: sacct: Slurm accounting storage is disabled. ")
        assert advice in line
    records.records.clear()
    slurm("sacct", "")
    progress._require_status()
    Path("bin/sacct").unlink()
    progress._require_status()  # the plugin takes squeue then
    assert not records.lines


def test_the_thread_asks_sacct_first(progress, records, monkeypatch):
    plugin = Plugin(get_min_job_age=lambda: None)
    monkeypatch.setitem(console.sys.modules, "snakemake_executor_plugin_slurm", plugin)
    progress.workflow.executor_settings = SimpleNamespace(status_command="sacct", init_seconds_before_status_checks=10)
    slurm("sacct", "Slurm accounting storage is disabled", status=1)
    progress.start()
    while not records.lines:
        time.sleep(0.01)
    progress.end("done")
    assert "sacct: Slurm accounting storage is disabled" in records.lines[0]


def test_a_sacct_that_hangs_is_no_answer(progress, monkeypatch):
    monkeypatch.setattr("proxycast.cluster.status.slurm_states.SLURM_SECONDS", 0.1)
    slurm("sacct", "")
    require_accounting()
    Path("bin/sacct").write_text("#!/bin/sh\nexec /bin/sleep 5\n")
    with pytest.raises(SlurmError, match="sacct gave no answer"):
        require_accounting()
