"""What Snakemake tells when it ends: what the run took, or which jobs failed and why."""

import re
import sys
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from glob import escape
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, NamedTuple

from proxycast.config import Plan, read_yaml
from proxycast.jobs import Attempt, attempts
from proxycast.progress import LAST_LINES, job_of, shown
from proxycast.resources import asked_gpus, read_benchmark
from proxycast.slurm_states import slurm_states

if TYPE_CHECKING:
    from snakemake.workflow import Workflow

SLURM_LOGS = Path(".snakemake/slurm_logs")  # unless --slurm-logdir says otherwise
LONGEST_ATTEMPT = timedelta(days=366)
TIME_OF_LINE = re.compile("([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9]) ")  # as `jobs.job` begins each record


class Logged(NamedTuple):
    """A job of Snakemake's plan that has a log."""

    rule: str
    name: str  # its wildcards
    log: Path
    gpus: int
    benchmark: Path | None
    slurm_logs: str = ""  # pattern of Slurm's own logs of it, below the folder of all; empty: unknown
    shares_slurm_logs: bool = False  # with other jobs of its group


def logged_jobs(jobs) -> list[Logged]:
    """Those of Snakemake's `jobs` that have a log; all have but the rule `all`."""
    return [
        Logged(
            job.rule.name,
            ", ".join(f"{key}={value}" for key, value in job.wildcards_dict.items()),
            Path(job.log[0]),
            asked_gpus(job.resources),
            Path(job.benchmark) if job.benchmark else None,
            _slurm_logs(job),
            bool(job.group),
        )
        for job in jobs
        if job.log
    ]


def _slurm_logs(job) -> str:
    """As Slurm's plugin names them: a folder for a job, or for all jobs of a group, which is named by its rules too."""
    if job.group:
        return f"group_{escape(getattr(job.group, 'groupid', job.group))}_*/*.log"
    values = "_".join(map(str, job.wildcards_dict.values())).replace("/", "_")
    return escape(f"rule_{job.rule.name}/{values}") + "/*.log"


def summary(workflow: "Workflow", plan: Plan) -> list[str]:
    """Lines on a run that has succeeded, for `onsuccess`."""
    since = workflow.start_time.replace(microsecond=0)  # as the logs have it
    jobs = logged_jobs(workflow.dag.jobs)
    return [
        *used(jobs, since),
        f"results: {plan.results}",
        report_line(plan, sys.argv[1:]),
    ]


def report_line(plan: Plan, arguments: Sequence[str]) -> str:
    """Where the report will lie that this run makes, or how to make one. `arguments`: Snakemake's command line."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--profile")
    parser.add_argument("--report", nargs="?", const="report.html")
    parser.add_argument("--report-after-run", action="store_true")
    given = parser.parse_known_args(arguments)[0]
    profile = Path(given.profile or "", "config.yaml")
    said = read_yaml(profile) if given.profile and profile.is_file() else {}
    report = given.report or said.get("report")
    if report and (given.report_after_run or said.get("report-after-run")):
        return f"report: {report}, made now"
    return f"report: snakemake --configfile {quote(str(plan.where))} --report {quote(f'{plan.results}/report.html')}"


def used(jobs: list[Logged], since: datetime) -> list[str]:
    """What jobs took, by rule and in all: attempts that began at `since` or later, and all that the logs tell of."""
    seconds, finished, gpu_seconds, gpu_seconds_ever = Counter(), Counter(), 0.0, 0.0
    for job in jobs:
        for attempt in attempts(job.log):
            took = (end_of(attempt) - attempt.started).total_seconds()
            gpu_seconds_ever += took * job.gpus
            if attempt.started >= since:
                gpu_seconds += took * job.gpus
                seconds[job.rule] += took
                finished[job.rule] += attempt.state == "done"
    lines = [f"{rule}: {finished[rule]} jobs, {_duration(took)}" for rule, took in seconds.most_common()]
    lines.append(
        f"in all {finished.total()} jobs in {_duration((datetime.now() - since).total_seconds())}: "
        f"{_duration(seconds.total())} of jobs and {gpu_seconds / 3600:.2f} GPU-hours, with earlier runs "
        f"{gpu_seconds_ever / 3600:.2f} GPU-hours (the time of every attempt in the logs, failed and killed ones too, "
        "times the GPUs that the job asks for)"
    )
    if peak := max(_peaks(jobs, since), default=None):
        lines.append(f"largest host memory: {peak[0]:,.0f} MB, {peak[1]}")
    return lines


def _duration(seconds: float) -> str:
    most = timedelta.max.total_seconds() / 2  # attempts of forged records take any time together
    return str(timedelta(seconds=round(max(-most, min(seconds, most)))))


def end_of(attempt: Attempt) -> datetime:
    """When an attempt ended; of a killed one the last time that its log bears, as nobody wrote down its end."""
    if attempt.ended:
        return attempt.ended
    end = attempt.started
    for line in attempt.lines:
        if found := TIME_OF_LINE.match(line):
            hour, minute, second = map(int, found.groups())
            then = end.replace(hour=hour, minute=minute, second=second)
            then = then if then >= end else then + timedelta(days=1)
            if then - attempt.started > LONGEST_ATTEMPT:  # a log may hold any times
                break
            end = then
    return end


def _peaks(jobs: list[Logged], since: datetime) -> Iterator[tuple[float, str]]:
    """(MB, job) of each job of this run that Snakemake measured."""
    for job in jobs:
        if job.benchmark and job.benchmark.exists() and job.benchmark.stat().st_mtime >= since.timestamp():
            if measured := read_benchmark(job.benchmark):
                yield measured["max_rss"], f"{job.rule} {job.name}".rstrip()


def failures(workflow: "Workflow", plan: Plan) -> list[str]:
    """Lines on each job that this run gave up, for `onerror`."""
    since = workflow.start_time.replace(microsecond=0)
    failed = sorted(logged_jobs(workflow.scheduler.failed))
    waiting = len(list(workflow.dag.needrun_jobs())) - len(failed)
    return [
        *told(failed, since, plan.results, Path(getattr(workflow.executor_settings, "logdir", None) or SLURM_LOGS)),
        f"{len(failed)} jobs failed; {waiting} others were not run or not ended",
    ]


def told(failed: list[Logged], since: datetime, results: Path, slurm_logs: Path = SLURM_LOGS) -> list[str]:
    """Each failed job, why it failed, its log and the log's last lines.

    Where its last attempt ended before the script began (Python missing, a prolog that fails), Slurm's own log is told.
    """
    last = {job.log: next(iter(attempts(job.log)[-1:]), None) for job in failed}
    begun = {log: attempt for log, attempt in last.items() if attempt and attempt.started >= since}
    states = slurm_states({a.slurm_job for a in begun.values() if a.slurm_job and a.state != "failed"})
    lines = []
    for job in failed:
        title = shown(f"{job.rule} {job.name}".rstrip())
        slurm_log = newest_log(slurm_logs, job.slurm_logs, since) if job.slurm_logs else None
        is_later = slurm_log and job.log in begun and slurm_log.stem != begun[job.log].slurm_job
        if slurm_log and (job.log not in begun or (is_later and not job.shares_slurm_logs)):
            lines.append(f"{title}: ended before its script began\n  Slurm's log: {shown(slurm_log)}")
            lines += [f"    {line}" for line in last_lines(slurm_log)]
            continue
        if job.log not in begun:
            lines.append(f"{title}: ended before its script began; what Snakemake said of it stands above")
            continue
        found = job_of(job.log, begun[job.log], states, results)
        lines.append(f"{title}: {shown(found.why)}\n  log: {shown(job.log)}")
        lines += [f"    {line}" for line in found.last_lines()]
    return lines


def newest_log(folder: Path, pattern: str, since: datetime) -> Path | None:
    """The log that was written last, at `since` or later."""
    times = {path: path.stat().st_mtime for path in folder.glob(pattern)}
    new = [path for path, written in times.items() if written >= since.timestamp()]
    return max(new, key=times.get, default=None)


def last_lines(log: Path) -> list[str]:
    lines = log.read_text(encoding="utf8", errors="replace").splitlines()
    return [shown(line) for line in lines if line.strip()][-LAST_LINES:] or ["(empty)"]
