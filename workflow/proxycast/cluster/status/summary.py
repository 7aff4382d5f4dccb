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

import polars as pl

from proxycast.cluster.gpu_locks import asked_gpus
from proxycast.cluster.status.slurm_states import slurm_states
from proxycast.cluster.status.watch import LAST_LINES, duration, job_of, shown
from proxycast.experiments.opposed_pairs import opposed_pairs
from proxycast.jobs import Attempt, attempts
from proxycast.jobs.benchmarks import read_benchmark
from proxycast.proxy_formulas import proxy_name
from proxycast.report.page.answers.claim_facts import claim_lines
from proxycast.report.page.answers.corpora_answer import corpus_answer, corpus_order
from proxycast.report.page.answers.forecasts_answer import forecast_answer
from proxycast.report.page.answers.models_answer import model_answer, model_order
from proxycast.report.page.answers.wording import Answer
from proxycast.report.page.study_results import StudyResults
from proxycast.study.study_plan import Plan
from proxycast.study.yaml_files import read_yaml

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
    """A pattern of Slurm's logs, as its plugin names them: a folder for a job, or for all jobs of a group."""
    if job.group:
        return f"group_{escape(getattr(job.group, 'groupid', job.group))}_*/*.log"
    values = "_".join(map(str, job.wildcards_dict.values())).replace("/", "_")
    return escape(f"rule_{job.rule.name}/{values}") + "/*.log"


def summary(workflow: "Workflow", plan: Plan) -> list[str]:
    """Lines on a run that has succeeded, for `onsuccess`: the answer first, where to read on last."""
    since = workflow.start_time.replace(microsecond=0)  # as the logs have it
    jobs = logged_jobs(workflow.dag.jobs)
    experiments = {job.rule for job in jobs}
    has_page = "study_page" in experiments  # a run may stop before it, and an older one tell of other options
    results = (
        StudyResults.read(plan.results) if has_page else StudyResults(plan.study, plan.results, plan.study.budgets)
    )
    lines = []
    if "data_selection" in experiments:
        lines += [*answer_lines(corpus_answer(results)), *order_of_corpora(results)]
    if "model_selection" in experiments:
        lines += [*answer_lines(model_answer(results)), *order_of_models(results)]
        lines += map(shown, claim_lines(results.table("model_selection/claims")))
    if "forecasting" in experiments:
        lines += answer_lines(forecast_answer(results))
    lines += [f"left out: {line}" for line in plan.left_out]
    return [*lines, *used(jobs, since), *report_lines(plan, sys.argv[1:])]


def answer_lines(answer: Answer | None) -> list[str]:
    """The answer at the top of the page as lines for a terminal; none where a run stops before it."""
    if answer is None:
        return []
    lines = [answer.warning, answer.sentence, *(f"  {fact.label.lower()}: {fact.text}" for fact in answer.facts)]
    lines += [f"  not known: {line[:1].lower()}{line[1:].removesuffix('.')}" for line in answer.missing]
    return [shown(line) for line in lines if line]


def order_of_corpora(results: StudyResults) -> list[str]:
    """The order of the corpora that the answer tells of."""
    order = corpus_order(results)
    if order is None:
        return []
    over = "solutions and seeds" if order.seeds > 1 else "solutions alone, as there is one seed"
    interval = f"{results.study.selection.confidence:.0%} interval over {over}"
    return [f"corpora, best first (place, {interval}):", *order_lines(order.ranking, "corpus")]


def order_of_models(results: StudyResults) -> list[str]:
    """The order of the models that the answer tells of, and the proxies named in advance that tell pairs otherwise."""
    order = model_order(results)
    if order is None:
        return []
    interval = f"{results.study.selection.confidence:.0%} interval over solutions"
    lines = [f"models, best first (place, {interval}):", *order_lines(order.ranking, "model")]
    named = [proxy_name(proxy.statistic, proxy.weighting) for proxy in results.study.highlighted]
    pairs = results.table("model_selection/pairs")
    of_others = None if pairs is None else pairs.filter(pl.col("task") == order.task, pl.col("method").is_in(named))
    opposed = () if of_others is None else opposed_pairs(order.pairs, of_others).group_by("method", maintain_order=True)
    for (method,), rows in opposed:
        better, worse = map(shown, rows.select("better", "worse").row(0))
        count = f"{len(rows)} of {len(order.pairs)} pairs" if len(order.pairs) > 1 else "them"
        lines.append(f"  but {method} tells {count} apart the other way round: {better} before {worse}")
    return lines


def order_lines(ranking: pl.DataFrame, name: str, most: int = 5) -> list[str]:
    """The best candidates with their places, in at most `most` + 1 lines.

    `ranking`: one ranking, a row a candidate: the column `name`, place, place_low and place_high.
    """
    rows = ranking.sort("place", name).rows(named=True)
    lines = []
    for row in rows[:most]:
        ends = "" if row["place_low"] is None else f" [{row['place_low']:.3g}, {row['place_high']:.3g}]"
        lines.append(f"  {row['place']:g}{ends} {shown(row[name])}")
    if len(rows) > most:
        lines.append(f"  and {len(rows) - most} more in the table ranking")
    return lines


def report_lines(plan: Plan, arguments: Sequence[str]) -> list[str]:
    """Where the study's page lies, and where this run writes Snakemake's own report, or how to make one.

    `arguments`: Snakemake's command line. A run that stops before the page has none to tell of.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--profile")
    parser.add_argument("--report", nargs="?", const="report.html")
    parser.add_argument("--report-after-run", action="store_true")
    given = parser.parse_known_args(arguments)[0]
    profile = Path(given.profile or "", "config.yaml")
    said = read_yaml(profile) if given.profile and profile.is_file() else {}
    report, page = given.report or said.get("report"), plan.results / "report.html"
    made = quote(f"{plan.results}/provenance.html")
    told = f"snakemake --configfile {quote(str(plan.where))} --report {made}"
    if report and (given.report_after_run or said.get("report-after-run")):
        told = f"{report}, made now"
        if Path(report).resolve() == page.resolve():
            told += " in the place of the study's page; give it another name, and remove it to have the page again"
    return [*([f"report: {page}"] if page.exists() else []), f"provenance of every file: {told}"]


def used(jobs: list[Logged], since: datetime) -> list[str]:
    """What jobs took, by rule and in all: attempts that began at `since` or later, and all attempts in the logs."""
    seconds, finished, gpu_seconds, gpu_seconds_ever = Counter(), Counter(), 0.0, 0.0
    for job in jobs:
        for attempt in attempts(job.log):
            took = (end_of(attempt) - attempt.started).total_seconds()
            gpu_seconds_ever += took * job.gpus
            if attempt.started >= since:
                gpu_seconds += took * job.gpus
                seconds[job.rule] += took
                finished[job.rule] += attempt.state == "done"
    lines = [f"{rule}: {finished[rule]} jobs, {duration(took)}" for rule, took in seconds.most_common()]
    lines.append(
        f"in all {finished.total()} jobs in {duration((datetime.now() - since).total_seconds())}: "
        f"{duration(seconds.total())} of jobs and {gpu_seconds / 3600:.2f} GPU-hours, with earlier runs "
        f"{gpu_seconds_ever / 3600:.2f} GPU-hours (the time of every attempt in the logs, failed and killed ones too, "
        "times the GPUs that the job asks for)"
    )
    if peak := max(_peaks(jobs, since), default=None):
        lines.append(f"largest host memory: {peak[0]:,.0f} MB, {peak[1]}")
    return lines


def end_of(attempt: Attempt) -> datetime:
    """When an attempt ended. A killed one has no recorded end: the last time in its log."""
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
