"""The worst nights of a cluster, on a real Slurm: a study is disturbed in its midst, and ends as if nothing had been.

After each fault the study is finished; no checkpoint that was scored is scored again, by the count of what the logs say
and by the files themselves; no job failed over a file that it read; and the tables are the undisturbed run's.

Studies of which only jobs are disturbed run side by side (`pytest -n 3 --dist loadscope`). Those that break the cluster
wait until they have it for themselves, and suffer several faults each.
"""

import contextlib
import json
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
from conftest import copy_project
from polars.testing import assert_frame_equal
from proxycast.jobs import attempts
from slurm_study import (
    CHECKPOINTS,
    EAGER,
    FIGURES,
    JOBS,
    PROXIES,
    RESULTS,
    ROOT,
    STUDY,
    Part,
    Snakemake,
    cluster,
    cluster_to_break,
    daemon,
    environment_of_jobs,
    last_attempt,
    log_of,
    parts,
    score_job,
    shared_cluster,
    slurm,
    slurm_jobs,
    snakemake,
    times_written,
    wait_for,
    write_json,
    write_study,
)

pytestmark = pytest.mark.slurm
LEFT, RIGHT = JOBS


def finish(project: Path) -> None:
    write_study(copy_project(project))
    command = [sys.executable, "-m", "snakemake", "--configfile", STUDY, "--cores", "2", "--omit-from", *FIGURES]
    subprocess.run(command, cwd=project, env=os.environ | EAGER, check=True)


@pytest.fixture(scope="session")
def undisturbed(once):
    """The study, finished without Slurm; to be read only."""
    project = once("undisturbed", finish)
    assert times_written(project) == dict.fromkeys(CHECKPOINTS, 1)
    return project


def copy_study(undisturbed: Path, project: Path, *left_out: str) -> None:
    shutil.copytree(undisturbed, project, ignore=shutil.ignore_patterns("models", *left_out), dirs_exist_ok=True)
    (project / "models").symlink_to(undisturbed / "models")


@pytest.fixture
def slowly(tmp_path, monkeypatch):
    """All jobs of the study take their time."""
    for name, value in environment_of_jobs(tmp_path).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def project(undisturbed, slowly, tmp_path):
    """The study before its first job, on a cluster that stays whole. Its solutions are there: they cost time."""
    copy_study(undisturbed, tmp_path, ".snakemake", "results")
    solutions = RESULTS / "solutions"
    shutil.copytree(undisturbed / solutions, tmp_path / solutions)
    with shared_cluster():
        yield tmp_path


@pytest.fixture
def finished(undisturbed, slowly, tmp_path):
    """The study after a run on one machine, but for its figures."""
    copy_study(undisturbed, tmp_path)
    with shared_cluster():
        yield tmp_path


@pytest.fixture
def project_alone(undisturbed, slowly, tmp_path):
    """The study before its first run, on a cluster that may be broken."""
    copy_study(undisturbed, tmp_path, ".snakemake", "results")
    with cluster_to_break():
        yield tmp_path


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


def states(project: Path, job: str = LEFT) -> list[str]:
    return [attempt.state for attempt in attempts(log_of(project, job))]


def slurm_numbers(project: Path, job: str = LEFT) -> list[str | None]:
    """Of the attempts of a job."""
    return [attempt.slurm_job for attempt in attempts(log_of(project, job))]


def consoles(project: Path) -> str:
    """What Slurm's own logs say of all jobs that did not succeed, and of those that run."""
    return "".join(path.read_text(errors="replace") for path in project.glob(".snakemake/slurm_logs/**/*.log"))


def memory_asked(number: str) -> str:
    """Of a job of Slurm, in MB."""
    return re.search(r"MinMemoryNode=(\S+)", slurm("scontrol", "show", "job", number))[1]


def use_partition(project: Path, name: str) -> None:
    """For all jobs, those with GPUs too."""
    profile = project / "slurm/config.yaml"
    profile.write_text(re.sub(r"(slurm_partition: )\w+", rf"\1{name}", profile.read_text()))


def preempt() -> None:
    """A job takes every node for a moment."""
    slurm("srun", "--partition", "cpu", "--nodes", "4", "--exclusive", "true")


def the_faster(run: Snakemake) -> tuple[str, str]:
    """The job that is the first to have scored two checkpoints, and is in the midst of the next one; the other job."""

    def found() -> list[str]:
        scored = [name.rpartition("-")[0] for name in parts(run.project)]
        return [job for job in JOBS if scored.count(job) >= 2]

    run.wait_for(found, "scored checkpoints")
    [fast] = found()[:1]
    [slow] = {*JOBS} - {fast}
    return fast, slow


def submit_as_documented(project: Path) -> str:
    """The lines of docs/tutorials/cluster.md that run Snakemake in a job of its own. -> the number of that job"""
    page = (ROOT / "docs/tutorials/cluster.md").read_text()
    lines = re.search(r"^```sh\n(study=.*?)```$", page, re.MULTILINE | re.DOTALL)[1]
    options = f"{PROXIES} --set-threads score=1 --slurm-init-seconds-before-status-checks 1"
    command = f"{sys.executable} -m snakemake {options} --profile slurm"
    for there, here in (("config/data_selection.yaml", STUDY), ("snakemake --profile slurm", command), ("3-0", "1-0")):
        lines = lines.replace(there, here)  # a partition of the local cluster allows a day
    said = subprocess.run(["sh", "-euc", lines], cwd=project, stdout=subprocess.PIPE, text=True, check=True).stdout
    return re.search(r"Submitted batch job (\d+)", said)[1]


def kill_job(number: str) -> None:
    """All processes of a Slurm job on this machine, its steps' daemons first: nobody is left to tell of it."""
    for process in psutil.process_iter(["cmdline"]):
        if " ".join(process.info["cmdline"] or []).startswith(f"slurmstepd: [{number}."):
            family = [process, *process.children(recursive=True)]
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()


class TestEndedJobs:
    """One worker of pytest has them, another one the class below: they disturb only their own jobs."""

    def test_a_cancelled_job_a_killed_worker_and_a_second_snakemake(self, project, undisturbed):
        """The second Snakemake is refused, and told why; the first does not notice."""
        with snakemake(project) as run:
            run.wait_for_checkpoints(1)
            second = Snakemake(project)
            fast, slow = the_faster(run)
            slurm("scancel", score_job(project, fast).number)
            before = run.wait_for_checkpoints(2, slow)
            os.kill(last_attempt(project, slow).process, signal.SIGKILL)
            assert second.finish() != 0
            assert "no other Snakemake process" in second.said and "Submitted" not in second.said
            assert run.process.poll() is None
            assert run.finish() == 0
        assert "SLURM status is: 'CANCELLED'" in run.said and "SLURM status is: 'FAILED'" in run.said
        assert states(project, LEFT) == states(project, RIGHT) == ["killed", "done"]
        check(project, undisturbed, before)

    def test_snakemake_in_a_job_of_its_own_that_begins_again(self, project, undisturbed):
        """As where nothing may run on the machine that one logs in to, and that job's node has died.

        Its jobs run on. Begun again, it has them all anew: each cancels its forerunner, and goes on where that was.
        """
        number = submit_as_documented(project)
        try:
            wait_for(lambda: len(parts(project)) > 2 and score_job(project), "scored checkpoints")
            slurm("scontrol", "requeue", number)
            before, job = parts(project), score_job(project)
            os.kill(last_attempt(project).process, signal.SIGSTOP)  # slow, and still there when the second one comes
            wait_for(lambda: job in slurm_jobs(project, "CANCELLED"), "cancelled forerunner")
            wait_for(
                lambda: number not in {job.number for job in slurm_jobs(project, "PENDING,RUNNING,COMPLETING")}, "end"
            )
            assert number in {job.number for job in slurm_jobs(project, "COMPLETED")}
        finally:
            for left in slurm_jobs(project, "PENDING,RUNNING"):
                slurm("scancel", left.number)
        assert states(project) == ["killed", "done"] and len(set(slurm_numbers(project))) == 2
        assert "Unlocked" in (project / f"slurm-{number}.out").read_text()
        check(project, undisturbed, before)


class TestOutputs:
    """What a job could not write, or lost."""

    def test_a_full_disk_then_too_little_memory_for_a_study_that_is_edited(self, project, undisturbed):
        """The study fails and says why; with room, and started again, it goes on with what was whole.

        Then a job over its limit is killed, and has more at its second attempt. The study is edited before that: jobs
        that are submitted later read it as it was.
        """
        disk = project / RESULTS.parts[0]
        shutil.rmtree(disk)
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(disk)], check=True)
        try:
            with snakemake(project, "--retries", "0") as run:
                assert run.finish() != 0
            assert "No space left on device" in run.said
            before = parts(project)
            assert 0 < len(before) < len(CHECKPOINTS)
            failed = {job: len(states(project, job)) for job in JOBS if states(project, job)[-1] != "done"}
            assert failed
            subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
            with snakemake(project, "--set-resources", "score:mem_mb=400*attempt**2") as run:
                run.wait_for(lambda: "has been submitted" in run.said, "submitted job")
                study = json.loads((project / STUDY).read_text())
                write_json(study | {"extraction": {"tail_tokens": 3}}, project / STUDY)
                run.wait_for(lambda: "Trying to restart" in run.said, "second attempt")
                assert run.finish() == 0
            assert "Exceeded job memory limit" in consoles(project)
            for job, attempts_before in failed.items():
                now = states(project, job)[attempts_before:]
                assert now[-1] == "done" and set(now[:-1]) <= {"killed"}
            check(project, undisturbed, before)
            command = [sys.executable, "-m", "snakemake", str(PROXIES), "--configfile", STUDY, "--dry-run"]
            planned = subprocess.run(
                command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ).stdout
            assert planned.count("rule score:") == 2
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    def test_truncated_outputs(self, finished, undisturbed):
        """Of what a copy or a file system cut short, only what was lost is made again, and what follows from it."""
        before = parts(finished)
        lost = f"{LEFT}-step50"
        cut = [RESULTS / f"token_stats/{LEFT}/{lost}.parquet", RESULTS / "proxies/right.parquet"]
        for path in cut:
            os.truncate(finished / path, (finished / path).stat().st_size * 2 // 3)
        with snakemake(finished, "--omit-from", *FIGURES, target="all") as run:
            assert run.finish() == 0
        assert all(f"{path} was truncated" in run.said for path in cut)
        assert states(finished) == ["done", "done"] and states(finished, RIGHT) == ["done"]
        check(finished, undisturbed, before, {lost})

    def test_a_job_that_was_given_up_leaves_no_old_result(self, finished):
        """Snakemake has recorded it as finished, and removed its output, which nothing needs but an old result."""
        truth, ranking = finished / "own/truth.csv", finished / RESULTS / "data_selection/ranking.parquet"
        before = pl.read_parquet(ranking)
        truth.write_text(truth.read_text().replace("0.3", "0.05"))
        nowhere = ["--set-resources", "join_targets:slurm_partition='nowhere'"]
        with snakemake(finished, *nowhere, "--omit-from", *FIGURES, target="all") as run:
            assert run.finish() != 0
        assert "invalid partition" in run.said.lower() and not (finished / RESULTS / "targets.parquet").exists()
        with snakemake(finished, "--omit-from", *FIGURES, target="all") as run:
            assert run.finish() == 0
        after = pl.read_parquet(ranking)
        assert dict(before.select("corpus", "true_rank").iter_rows()) == {"left": 2, "right": 1}
        assert dict(after.select("corpus", "true_rank").iter_rows()) == {"left": 1, "right": 2}


class TestBrokenCluster:
    """In a class, which `--dist loadscope` gives a worker of its own: each of these waits for all others."""

    def test_nodes_that_die_are_given_up_and_are_drained(self, project_alone, undisturbed):
        """What a dead node did is begun again elsewhere. A drained node finishes its job, and is given no more.

        A node that was given up, but whose processes live: the job's next attempt waits for the first one, which is
        slow here, and finds all done.
        """
        project = project_alone
        with snakemake(project) as run:
            stopped, other = the_faster(run)
            worker = last_attempt(project, stopped).process
            os.kill(worker, signal.SIGSTOP)
            try:
                before = run.wait_for_checkpoints(2, other)
                given_up, dead = score_job(project, stopped), score_job(project, other)
                assert dead.node != given_up.node
                for job in (dead, given_up):
                    os.kill(daemon(f"slurmd-{job.node}"), signal.SIGKILL)
                kill_job(dead.number)
                run.wait_for(lambda: score_job(project, other) not in (None, dead), "second attempt on another node")
                drained = score_job(project, other).node
                run.wait_for_checkpoints(3, other)
                slurm("scontrol", "update", f"NodeName={drained}", "State=DRAIN", "Reason=test")
                run.wait_for(lambda: "this job runs already" in consoles(project), "second attempt that waits")
                assert score_job(project, stopped).node != given_up.node
            finally:
                os.kill(worker, signal.SIGCONT)
            assert run.finish() == 0
        assert drained != dead.node and states(project, other) == ["killed", "done"]
        assert states(project, stopped) == ["done", "done"]
        later = [job for job in slurm_jobs(project, "COMPLETED") if "rule_score" not in job.what]
        assert len(later) >= 2 and drained not in {job.node for job in later}
        check(project, undisturbed, before)

    def test_slurmctld_away_and_preempted_jobs(self, project_alone, undisturbed):
        """Jobs are submitted again until slurmctld takes them, in their first attempt.

        Snakemake asks for states in vain, more often than its plugin has patience by default, and gets its answer.

        Another job takes every node: those of the study go back to the queue, and start again under the same number.
        """
        project = project_alone
        use_partition(project, "preemptible")
        with snakemake(project, "--verbose") as run:
            run.wait_for(lambda: "SLURM run ID" in run.said, "start")
            os.kill(daemon("slurmctld"), signal.SIGKILL)
            run.wait_for(lambda: "trying again in 10 s" in run.said, "second refusal")
            assert "Unable to contact slurm controller" in run.said
            cluster("up")
            preempted, _ = the_faster(run)
            before = parts(project)
            preempt()
            run.wait_for(lambda: len(states(project, preempted)) == 2, "second attempt")
            os.kill(daemon("slurmctld"), signal.SIGKILL)
            run.wait_for(
                lambda: run.said.count("could not check status of job") > 5, "question that slurmctld left unanswered"
            )
            cluster("up")
            assert run.finish() == 0
        assert "Trying to restart" not in run.said
        assert states(project, preempted) == ["killed", "done"]
        for name in JOBS:
            [number] = {*slurm_numbers(project, name)}
            assert memory_asked(number) == "4008M"
        check(project, undisturbed, before)

    def test_accounting_limits_and_jobs_preempted_for_good(self, project_alone, undisturbed):
        """With sacct as the status command. A limit on the jobs that a user may have costs no attempt.

        A partition whose PreemptMode is CANCEL ends jobs for good; Slurm calls them preempted. They are tried again.
        """
        project = project_alone
        use_partition(project, "preemptible")
        cluster("up", SLURM_ACCOUNTING="1")
        slurm("scontrol", "update", "PartitionName=preemptible", "PreemptMode=CANCEL")
        slurm("sacctmgr", "--immediate", "modify", "user", "root", "set", "MaxSubmitJobs=0")
        with snakemake(project, "--slurm-status-command", "sacct") as run:
            run.wait_for(lambda: "trying again in 10 s" in run.said, "second refusal")
            assert "AssocMaxSubmitJobLimit" in run.said
            slurm("sacctmgr", "--immediate", "modify", "user", "root", "set", "MaxSubmitJobs=-1")
            name, _ = the_faster(run)
            before, preempted = parts(project), score_job(project, name)
            preempt()
            run.wait_for(lambda: score_job(project, name) not in (None, preempted), "second attempt")
            run.wait_for_checkpoints(len([part for part in before if part.startswith(name)]) + 1, name)
            cancelled = score_job(project, name).number
            slurm("scancel", cancelled)
            assert run.finish() == 0
        assert f"SLURM-job '{preempted.number}' is lost: its state is PREEMPTED" in run.said
        assert f"SLURM-job '{cancelled}' failed, SLURM status is: 'CANCELLED" in run.said
        assert states(project, name) == ["killed", "killed", "done"]
        assert {memory_asked(slurm_numbers(project, job)[0]) for job in JOBS} == {"4008M"}
        counted = slurm(
            "sacct", "--starttime", "now-1hours", "--allocations", "--noheader", "--parsable2", "--format", "State"
        ).split("\n")
        assert counted.count("COMPLETED") >= 5
        check(project, undisturbed, before)
