"""The worst nights of a cluster, on a real Slurm: a study is disturbed in its midst, and ends as if nothing had been.

After each fault the study is finished; no checkpoint that was scored is scored again, by the count of what the logs say
and by the files themselves; no job failed over a file that it read; and the tables are the undisturbed run's.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import polars as pl
import psutil
import pytest
from polars.testing import assert_frame_equal
from proxycast.jobs import attempts
from slurm_study import (
    CHECKPOINTS,
    JOBS,
    PROXIES,
    RESULTS,
    STUDY,
    Part,
    Snakemake,
    cluster,
    copy_project,
    daemon,
    last_attempt,
    log_of,
    parts,
    score_job,
    slurm,
    slurm_jobs,
    snakemake,
    times_written,
    write_study,
)

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The study, finished without Slurm; to be read only."""
    project = tmp_path_factory.mktemp("undisturbed")
    write_study(copy_project(project))
    command = [sys.executable, "-m", "snakemake", str(PROXIES), "--configfile", STUDY, "--cores", "2"]
    subprocess.run(command, cwd=project, check=True)
    assert times_written(project) == dict.fromkeys(CHECKPOINTS, 1)
    return project


@pytest.fixture
def project(undisturbed, tmp_path):
    """The study before its first run; the cluster is whole before and after."""
    cluster("up")
    left_out = shutil.ignore_patterns("results", ".snakemake", "models")
    shutil.copytree(undisturbed, tmp_path, ignore=left_out, dirs_exist_ok=True)
    (tmp_path / "models").symlink_to(undisturbed / "models")
    yield tmp_path
    cluster("up")


def check(project: Path, undisturbed: Path, before: dict[str, Part], again: Collection[str] = ()) -> None:
    """The study is finished, and of `before`, what was there at the fault, only `again` was made again."""
    assert times_written(project) == {name: 1 + (name in again) for name in CHECKPOINTS}
    now = parts(project)
    assert now.keys() == CHECKPOINTS
    assert {name for name, part in before.items() if now[name] != part} == set(again)
    for name in now:
        [found], [expected] = (
            (root / RESULTS).glob(f"token_stats/*/{name}.parquet") for root in (project, undisturbed)
        )
        assert_frame_equal(pl.read_parquet(found), pl.read_parquet(expected), check_exact=True)
    # Polars adds up in the order in which its threads come.
    found, expected = pl.read_parquet(project / PROXIES), pl.read_parquet(undisturbed / PROXIES)
    assert_frame_equal(found, expected, check_exact=False, rel_tol=1e-10, abs_tol=1e-12)


def states(project: Path, job: str = JOBS[0]) -> list[str]:
    return [attempt.state for attempt in attempts(log_of(project, job))]


def consoles(project: Path) -> str:
    """What Slurm's own logs say of all jobs that did not succeed, and of those that run."""
    return "".join(path.read_text(errors="replace") for path in project.glob(".snakemake/slurm_logs/**/*.log"))


def test_a_cancelled_job(project, undisturbed):
    with snakemake(project) as run:
        before = run.wait_for_checkpoints(2)
        slurm("scancel", score_job(project).number)
        assert run.finish() == 0
    assert states(project) == ["killed", "done"]
    check(project, undisturbed, before)


def test_a_preempted_job(project, undisturbed):
    """Another job takes every node; this one goes back to the queue, and starts again as the same job of Slurm."""
    profile = project / "slurm/config.yaml"
    profile.write_text(re.sub(r"(slurm_partition: )\w+", r"\1preemptible", profile.read_text()))
    with snakemake(project) as run:
        before = run.wait_for_checkpoints(2)
        job = score_job(project).number
        slurm("srun", "--partition", "cpu", "--nodes", "4", "--exclusive", "true")
        assert run.finish() == 0
    assert [attempt.slurm_job for attempt in attempts(log_of(project))] == [job, job]
    assert states(project) == ["killed", "done"]
    check(project, undisturbed, before)


def test_a_killed_worker(project, undisturbed):
    with snakemake(project) as run:
        before = run.wait_for_checkpoints(2)
        os.kill(last_attempt(project).process, signal.SIGKILL)
        assert run.finish() == 0
    assert states(project) == ["killed", "done"]
    check(project, undisturbed, before)


def test_out_of_memory(project, undisturbed):
    """A job over its limit is killed, and has more at its second attempt."""
    with snakemake(project, "--set-resources", "score:mem_mb=400*attempt**2") as run:
        run.wait_for(lambda: "Trying to restart" in run.said, "second attempt")
        before = parts(project)
        assert run.finish() == 0
    assert "Exceeded job memory limit" in consoles(project)
    assert states(project)[-1] == "done" and set(states(project)[:-1]) <= {"killed"}
    check(project, undisturbed, before)


def test_a_drained_node(project, undisturbed):
    """It finishes what it has begun, and is given nothing more."""
    with snakemake(project) as run:
        before = run.wait_for_checkpoints(2)
        node = score_job(project).node
        slurm("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
        assert run.finish() == 0
    assert states(project) == ["done"]
    later = [job for job in slurm_jobs(project, "COMPLETED") if "rule_score" not in job.what]
    assert len(later) >= 2 and node not in {job.node for job in later}
    check(project, undisturbed, before)


def kill_job(number: str) -> None:
    """All processes of a Slurm job on this machine, its steps' daemons first: nobody is left to tell of it."""
    for process in psutil.process_iter(["cmdline"]):
        if " ".join(process.info["cmdline"] or []).startswith(f"slurmstepd: [{number}."):
            family = [process, *process.children(recursive=True)]
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()


def test_a_dead_node(project, undisturbed):
    """With all that ran on it; the job is begun again elsewhere."""
    with snakemake(project) as run:
        before = run.wait_for_checkpoints(2)
        job = score_job(project)
        os.kill(daemon(f"slurmd-{job.node}"), signal.SIGKILL)
        kill_job(job.number)
        run.wait_for(lambda: score_job(project) not in (None, job), "second attempt on another node")
        assert run.finish() == 0
    assert states(project) == ["killed", "done"]
    check(project, undisturbed, before)


def test_a_node_given_up_whose_processes_live(project, undisturbed):
    """The job is begun again elsewhere, waits for its first process, which is slow here, and finds all done."""
    with snakemake(project) as run:
        before = run.wait_for_checkpoints(2)
        job, worker = score_job(project), last_attempt(project).process
        os.kill(worker, signal.SIGSTOP)
        try:
            os.kill(daemon(f"slurmd-{job.node}"), signal.SIGKILL)
            run.wait_for(lambda: "this job runs already" in consoles(project), "second attempt that waits")
            assert score_job(project).node != job.node
        finally:
            os.kill(worker, signal.SIGCONT)
        assert run.finish() == 0
    assert states(project) == ["done", "done"]
    check(project, undisturbed, before)


def test_snakemake_killed(project, undisturbed):
    """Its jobs run on. Started again, it has them all anew: each cancels its forerunner, and goes on where that was."""
    with snakemake(project) as first:
        before = first.wait_for_checkpoints(2)
        job = score_job(project)
        first.kill()
        os.kill(last_attempt(project).process, signal.SIGSTOP)  # slow, and still there when the second one comes
        assert job in slurm_jobs(project)
        unlock(project)
        with snakemake(project) as second:
            second.wait_for(lambda: job in slurm_jobs(project, "CANCELLED"), "cancelled forerunner")
            assert second.finish() == 0
    assert states(project) == ["killed", "done"]
    assert len({attempt.slurm_job for attempt in attempts(log_of(project))}) == 2
    check(project, undisturbed, before)


def unlock(project: Path) -> None:
    command = [sys.executable, "-m", "snakemake", "--profile", "slurm", "--configfile", STUDY, "--unlock"]
    subprocess.run(command, cwd=project, check=True)


def test_a_full_disk(project, undisturbed):
    """The study fails and says why; with room, and started again, it goes on with what was whole."""
    (project / RESULTS.parts[0]).mkdir()
    disk = str(project / RESULTS.parts[0])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", disk], check=True)
    try:
        with snakemake(project, "--retries", "0") as run:
            assert run.finish() != 0
        assert "No space left on device" in run.said
        before = parts(project)
        assert 0 < len(before) < len(CHECKPOINTS)
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        with snakemake(project) as run:
            assert run.finish() == 0
        check(project, undisturbed, before)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_truncated_outputs(project, undisturbed):
    """Of what a copy or a file system cut short, that alone is made again which was lost, and what follows from it."""
    with snakemake(project, target="all") as run:
        assert run.finish() == 0
    before = parts(project)
    lost = f"{JOBS[0]}-step50"
    cut = [RESULTS / f"token_stats/{JOBS[0]}/{lost}.parquet", RESULTS / "proxies/right.parquet"]
    for path in cut:
        os.truncate(project / path, (project / path).stat().st_size * 2 // 3)
    with snakemake(project, target="all") as run:
        assert run.finish() == 0
    assert all(f"{path} was truncated" in run.said for path in cut)
    assert states(project) == ["done", "done"] and states(project, JOBS[1]) == ["done"]
    check(project, undisturbed, before, {lost})


def test_two_snakemakes(project, undisturbed):
    """The second is refused, and told why; the first does not notice."""
    with snakemake(project) as first:
        before = first.wait_for_checkpoints(1)
        second = Snakemake(project)
        assert second.finish() != 0
        assert "no other Snakemake process" in second.said and "Submitted" not in second.said
        assert first.process.poll() is None
        assert first.finish() == 0
    assert states(project) == ["done"]
    check(project, undisturbed, before)


def test_slurmctld_restarted(project, undisturbed):
    """Snakemake asks in vain, more often than its plugin has patience by default, and still gets its answer."""
    with snakemake(project, "--verbose") as run:
        before = run.wait_for_checkpoints(2)
        os.kill(daemon("slurmctld"), signal.SIGKILL)
        run.wait_for(
            lambda: run.said.count("could not check status of job") > 5, "question that slurmctld left unanswered"
        )
        cluster("up")
        assert run.finish() == 0
    assert states(project) == ["done"]
    check(project, undisturbed, before)
