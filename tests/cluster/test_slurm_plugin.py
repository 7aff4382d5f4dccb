"""The cures of Snakemake's Slurm plugin; on a real Slurm, components/test_slurm_faults.py.

Here Slurm's commands are shell scripts: sbatch notes what it was asked for, and makes the only job's output at once.
"""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import forked_python
import pytest
import snakemake_executor_plugin_slurm as plugin
from proxycast.cluster.slurm_plugin import _passes, repair_plugin, unfit_for_shell
from snakemake.cli import parse_args

POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
SNAKEFILE = """
from proxycast.cluster import slurm_plugin
if workflow.is_main_process:
    slurm_plugin.FIRST_PAUSE, slurm_plugin.LOOKS_WITHOUT_TRACE = 1.0, 2
    slurm_plugin.repair_plugin()
rule work:
    output: "done"
    resources: mem_mb=lambda wildcards, attempt: 100 * attempt
    shell: "touch done"
"""
AWAY = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
TAKEN = "touch done; echo $(wc -l < asked)"  # job numbers: 1, 2, ...


@pytest.fixture(autouse=True)
def unrepaired_afterwards(monkeypatch):
    for name in ("get_min_job_age", "query_job_status", "get_submit_command"):
        monkeypatch.setattr(plugin, name, getattr(plugin, name))
    for name in ("check_active_jobs", "cancel", "shutdown", "additional_general_args", "format_job_exec"):
        monkeypatch.setattr(plugin.Executor, name, getattr(plugin.Executor, name))
    for name in ("_report_job_error_threadsafe", "_report_job_submission_threadsafe"):
        monkeypatch.setattr(plugin.Executor, name, getattr(plugin.Executor, name))


def test_what_slurmctld_said_stands_while_it_is_away(monkeypatch):
    """`None` is no answer; the plugin would turn from squeue to sacct, which need not run."""
    answers = iter([None, 300, None, None, 60, None])
    monkeypatch.setattr(plugin, "get_min_job_age", lambda: next(answers))
    repair_plugin()
    assert [plugin.get_min_job_age() for _ in range(6)] == [None, 300, 300, 300, 60, 60]


def test_the_snakemake_of_a_job_removes_no_output():
    """The main process does, for the attempt that counts."""
    repair_plugin()
    settings = SimpleNamespace(pass_command_as_script=False)
    executor = SimpleNamespace(workflow=SimpleNamespace(executor_settings=settings))
    arguments = plugin.Executor.additional_general_args(executor).split()
    assert {"--executor", "slurm-jobstep", "--keep-incomplete"} <= set(arguments)
    assert parse_args(["--cores", "1", *arguments])[1].keep_incomplete


@pytest.mark.parametrize("kind", ["single", "group", "array", "mpi", "script"])
def test_only_a_single_job_of_a_rule_starts_one_snakemake(monkeypatch, kind):
    """The other kinds are started as the plugin starts them."""
    own = plugin.Executor.additional_general_args
    started = "python -m snakemake --mode remote"
    monkeypatch.setattr(plugin.Executor, "format_job_exec", lambda self, job: f"{started} {own(self)}".strip())
    repair_plugin()
    settings = SimpleNamespace(pass_command_as_script=kind == "script")
    executor = SimpleNamespace(
        workflow=SimpleNamespace(executor_settings=settings),
        array_jobs={"all"} if kind == "array" else set(),
        get_python_executable=lambda: "python",
    )
    resources = {"gpu": 2} | ({"mpi": "srun"} if kind == "mpi" else {})
    job = SimpleNamespace(is_group=lambda: kind == "group", resources=Resources(resources), threads=3)
    command = plugin.Executor.format_job_exec(executor, job)
    if kind == "single":
        assert (
            command.split()
            == (
                f"python -m proxycast.cluster.job_step -n1 --cpu-bind=q --cpus-per-task=3 --gpus=2 --nodes=1 {started}"
            ).split()
        )
    else:
        assert command.startswith(f"{started} --executor slurm-jobstep --jobs 1")


class Resources(dict):
    __getattr__ = dict.get


@pytest.mark.parametrize(
    ("answer", "states"),
    [
        ("printf '7|CANCELLED by 1000\\n8|RUNNING\\n'", {"7": "CANCELLED", "8": "RUNNING"}),
        ("true", {}),
        ("false", None),
    ],
)
def test_who_cancelled_a_job_is_left_out(answer, states):
    repair_plugin()
    found, seconds = asyncio.run(plugin.query_job_status(f'sh -c "{answer}"', logging.getLogger("test")))
    assert found == states and (seconds is None) == (states is None)


@pytest.mark.parametrize(
    ("said", "passes"),
    [
        ("Unable to contact slurm controller (connect failure)", True),
        ("Socket timed out on send/recv operation", True),
        ("Slurm temporarily unable to accept job, sleeping and retrying", True),
        ("Resource temporarily unavailable", True),
        ("Unable to create job record, try again", True),
        ("Required partition not available (inactive or drain)", True),
        (f"AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: {POLICY}", True),
        (f"QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: {POLICY}", True),
        (f"AssocGrpSubmitJobsLimit\nsbatch: error: Batch job submission failed: {POLICY}", True),
        (POLICY, True),
        (f"QOSMaxWallDurationPerJobLimit\nsbatch: error: Batch job submission failed: {POLICY}", False),
        ("Batch job submission failed: Invalid partition name specified", False),
        ("Batch job submission failed: Invalid account or account/partition combination specified", False),
        ("Batch job submission failed: Invalid qos specification", False),
        ("Batch job submission failed: Requested node configuration is not available", False),
        ("Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)", False),
    ],
)
def test_which_refusals_pass(said, passes):
    assert _passes(f"SLURM sbatch failed. The error message was 'sbatch: error: {said}'.") == passes


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A function that puts a shell script in the place of a command of Slurm."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")

    def command(name: str, script: str) -> None:
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\ncd {tmp_path}\n{script}\n")
        path.chmod(0o755)

    for name in ("sacct", "sshare", "sacctmgr"):
        command(name, "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    command("scontrol", "echo 'MinJobAge = 300 sec'")
    command("scancel", "true")
    command("sinfo", "echo 'cpu*'")
    command("squeue", 'for n in $(seq $(wc -l < asked)); do echo "$n|COMPLETED"; done')
    return command


COMMAND = ["snakemake", "--executor", "slurm", "--jobs", "2", "--retries", "2"]
COMMAND += ["--slurm-init-seconds-before-status-checks", "1", "--slurm-status-command", "squeue"]


def snakemake(folder: Path) -> subprocess.CompletedProcess:
    """A Snakemake that has run in a folder; `stdout` has both streams."""
    return forked_python.run(*COMMAND, cwd=folder, merged=True, timeout=120)


def memory_asked(folder: Path) -> list[str]:
    """Of each call of sbatch."""
    return [line.partition("--mem ")[2].partition(" ")[0] for line in (folder / "asked").read_text().splitlines()]


def sbatch(script: str) -> str:
    return f'echo "$*" | head -n 1 >> asked; {script}'


def test_a_job_that_slurm_takes_later_is_in_its_first_attempt(slurm, tmp_path):
    slurm("sbatch", sbatch(f"if [ $(wc -l < asked) -lt 3 ]; then echo '{AWAY}' >&2; exit 1; fi; {TAKEN}"))
    run = snakemake(tmp_path)
    assert run.returncode == 0, run.stdout
    assert memory_asked(tmp_path) == ["100"] * 3
    assert "trying again in 1 s" in run.stdout and "trying again in 2 s" in run.stdout and AWAY in run.stdout
    assert "Trying to restart" not in run.stdout and "--wrap" not in run.stdout


def test_one_snakemake_runs_in_a_job_in_a_step_of_its_own(slurm, tmp_path):
    """Of what stands in its environment, srun is told what names the job."""
    job = "SLURM_JOB_ID=7 SLURM_MEM_PER_CPU=5 SRUN_X=1 SBATCH_X=1"
    slurm(
        "sbatch", f'echo x >> asked; for last; do :; done; {job} sh -c "${{last#--wrap=}}" >&2; echo $(wc -l < asked)'
    )
    slurm(
        "srun",
        'echo "$*" >> steps; env | sed "s/=.*//" > names; while [ "$1" != -m ]; do last=$1; shift; done; "$last" "$@"',
    )
    run = snakemake(tmp_path)
    assert run.returncode == 0 and (tmp_path / "done").exists(), run.stdout
    [step] = (tmp_path / "steps").read_text().splitlines()
    assert step.startswith("-n1 --cpu-bind=q --cpus-per-task=1 --nodes=1 ") and "jobstep" not in step
    assert "--keep-incomplete" in step and step.endswith("--mode remote")
    names = set((tmp_path / "names").read_text().split())
    assert "SLURM_JOB_ID" in names and not names & {"SLURM_MEM_PER_CPU", "SRUN_X", "SBATCH_X"}


def test_a_job_that_slurm_will_never_take_fails(slurm, tmp_path):
    words = "sbatch: error: Batch job submission failed: Invalid partition name specified"
    slurm("sbatch", sbatch(f"echo '{words}' >&2; exit 1"))
    run = snakemake(tmp_path)
    assert run.returncode == 1
    assert words in run.stdout and "Correct slurm/config.yaml" in run.stdout and "trying again" not in run.stdout
    assert "--wrap" not in run.stdout


@pytest.mark.parametrize("name", ["slurm_extra", "slurm_partition", "qos", "slurm_cluster"])
def test_no_resource_takes_a_command_to_the_shell_of_the_head_node(slurm, tmp_path, name):
    """Wherever it is from, a rule or a profile; the plugin writes slurm_extra as it is."""
    snakefile = tmp_path / "Snakefile"
    hostile = f'{name}="--x=$(touch pwned)",'
    snakefile.write_text(snakefile.read_text().replace("resources: ", f"resources: {hostile} "))
    slurm("sbatch", sbatch(TAKEN))
    run = snakemake(tmp_path)
    assert run.returncode == 1 and f"rule work: resource {name}: found '--x=$(touch pwned)'" in run.stdout
    assert not (tmp_path / "pwned").exists() and not (tmp_path / "asked").exists()


def test_which_resources_are_fit_for_a_shell():
    fit = {"constraint": "a100&nvlink", "slurm_extra": "--a=b -c d", "runtime": 90, "gres": "gpu:h100:2", "qos": ""}
    fit |= {"tasks_per_gpu": -1, "slurm_account": "lab.of-a_b", "slurm_partition": "gpu,cpu", "mem_mb": 0.5}
    assert not any(unfit_for_shell(name, value) for name, value in fit.items())
    assert all(unfit_for_shell(name, "a\n") for name in [*fit, "mem_mb"])


def test_an_interrupt_ends_what_waits_for_slurm(slurm, tmp_path):
    snakefile = tmp_path / "Snakefile"
    snakefile.write_text(snakefile.read_text().replace("1.0, 2", "1000.0, 2"))
    slurm("sbatch", sbatch(f"echo '{AWAY}' >&2; exit 1"))
    command = [sys.executable, "-m", *COMMAND]
    run = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "asked").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    interrupted = time.monotonic()
    try:
        run.send_signal(signal.SIGINT)
        said, _ = run.communicate(timeout=60)
    finally:
        run.kill()  # nothing, where it has ended
    assert run.returncode != 0 and time.monotonic() - interrupted < 30, said
    assert memory_asked(tmp_path) == ["100"], said


@pytest.mark.parametrize("answer", ["true", "echo '1|PREEMPTED'"])
def test_a_job_that_has_gone_is_tried_again(slurm, tmp_path, answer):
    """Slurm has forgotten it, or has preempted it for good."""
    slurm("sbatch", sbatch(TAKEN))
    slurm("squeue", f"{answer}; [ $(wc -l < asked) -lt 2 ] || echo '2|COMPLETED'")
    run = snakemake(tmp_path)
    assert run.returncode == 0, run.stdout
    assert memory_asked(tmp_path) == ["100", "200"]
    assert "SLURM-job '1' is lost" in run.stdout


def test_a_forgotten_job_whose_success_is_in_the_accounts(slurm, tmp_path):
    slurm("sbatch", sbatch(TAKEN))
    slurm("squeue", "true")
    slurm("sacct", "case $* in *JobIdRaw*) echo '1|COMPLETED';; esac")
    run = snakemake(tmp_path)
    assert run.returncode == 0 and memory_asked(tmp_path) == ["100"], run.stdout


def test_an_end_is_noticed_within_a_minute(monkeypatch):
    """However long nothing has happened before."""

    async def nothing_new(self, active_jobs):
        for job in active_jobs:
            yield job
        self.next_seconds_between_status_checks = 180

    class Executor(plugin.Executor):
        def __init__(self):
            self._next_seconds_between_status_checks = 10

    async def look(executor, jobs):
        return [job async for job in executor.check_active_jobs(jobs)]

    monkeypatch.setattr(plugin.Executor, "check_active_jobs", nothing_new)
    repair_plugin()
    executor, waits = Executor(), []
    job = type("Job", (), {"external_jobid": "7_1"})
    for _ in range(6):
        assert asyncio.run(look(executor, [job])) == [job]
        waits.append(executor.next_seconds_between_status_checks)
    assert waits == [15, 22.5, 33.75, 50.625, 60, 60]
