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
from proxycast.cluster.model_jobs import read_benchmark
from proxycast.cluster.status.slurm_states import slurm_states
from proxycast.cluster.status.watch import LAST_LINES, duration, job_of, shown
from proxycast.experiments.forecasting.run_end import told_ends
from proxycast.experiments.opposed_pairs import opposed_pairs
from proxycast.jobs import Attempt, attempts
from proxycast.proxy_formulas import proxy_name
from proxycast.study.study_plan import Plan
from proxycast.study.yaml_files import read_yaml
from proxycast.tables import read_table

if TYPE_CHECKING:
    from snakemake.workflow import Workflow

SLURM_LOGS = Path(".snakemake/slurm_logs")  # unless --slurm-logdir says otherwise
LONGEST_ATTEMPT = timedelta(days=366)
OTHERS = 4  # methods whose agreement is told
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
    """Lines on a run that has succeeded, for `onsuccess`."""
    since = workflow.start_time.replace(microsecond=0)  # as the logs have it
    jobs = logged_jobs(workflow.dag.jobs)
    return [
        *used(jobs, since),
        *(order_of_corpora(plan) if any(job.rule == "data_selection" for job in jobs) else []),
        *(order_of_models(plan) if any(job.rule == "model_selection" for job in jobs) else []),
        *(cost_of_choices(plan) if any(job.rule == "choices" for job in jobs) else []),
        *(f"left out: {line}" for line in plan.left_out),
        *forecast_ends(plan),
        f"results: {plan.results}",
        report_line(plan, sys.argv[1:]),
    ]


def order_of_corpora(plan: Plan) -> list[str]:
    """The order of the corpora by the first proxy that was named in advance, at the study's last budget."""
    folder, proxy = plan.results / "data_selection", plan.study.highlighted[0]
    paths = [folder / f"{name}.parquet" for name in ("ranking", "pairs")]
    if not all(path.exists() for path in paths):  # a run may stop before them
        return []
    ranking, pairs = (read_table(p).filter(statistic=proxy.statistic, weighting=proxy.weighting) for p in paths)
    for last in plan.study.budgets[-1:]:  # without budgets in the study there is one
        ranking, pairs = (table.filter(size=last.size, step=last.step) for table in (ranking, pairs))
    if ranking.is_empty():
        return []
    size, step = ranking.select("size", "step").row(0)
    title = f"corpora, best first, by {proxy_name(proxy.statistic, proxy.weighting)} of {size} at step {step}"
    over = "solutions and seeds" if ranking["seeds"].min() > 1 else "solutions alone, as there is one seed"
    interval = f"{plan.study.selection.confidence:.0%} interval over {over}"
    return [f"{title} (place, {interval}):", *order_lines(ranking, pairs, "corpus")]


def cost_of_choices(plan: Plan) -> list[str]:
    """What the pick of the first proxy named in advance costs at the last budget, and that of the best baseline."""
    proxy = plan.study.highlighted[0]
    paths = [plan.results / f"data_selection/{name}.parquet" for name in ("choices", "decisions")]
    if not all(path.exists() for path in paths):  # a run may stop before them
        return []
    rows, at_budgets = map(read_table, paths)
    rows = rows.filter(seed="mean").join(at_budgets, on=["size", "step"], how="semi", maintain_order="left")
    for last in plan.study.budgets[-1:]:  # without budgets in the study there is one
        rows = rows.filter(size=last.size, step=last.step)
    own = rows.filter(statistic=proxy.statistic, weighting=proxy.weighting)
    if own.is_empty():
        return []
    first = own.row(0, named=True)
    lines = [f"what the pick of {first['size']} models at step {first['step']} costs, in {plan.study.target.metric}:"]
    best = rows.filter(kind="baseline", statistic=first["best_baseline"] or "")
    best = best.join(own, on=["statistic", "weighting"], how="anti")  # the proxy named first may be that baseline
    by = [(proxy_name(proxy.statistic, proxy.weighting), first)]
    by += [(f"{row['statistic']}, the best baseline", row) for row in best.iter_rows(named=True)]
    for name, row in by:
        ends = "" if row["regret_low"] is None else f" [{row['regret_low']:.3g}, {row['regret_high']:.3g}]"
        lines.append(f"  {row['regret']:.3g}{ends} by {name}, which picks {shown(row['picked'])}")
    return [*lines, f"  {first['random_regret']:.3g} by a random choice"]


def order_of_models(plan: Plan) -> list[str]:
    """The order of the models over all tasks by the method that the table names first, and how far others agree."""
    paths = [plan.results / f"model_selection/{name}.parquet" for name in ("ranking", "pairs", "agreement")]
    if not all(path.exists() for path in paths):  # a run may stop before them
        return []
    tables = [read_table(path) for path in paths]
    first = tables[0].row(0, named=True)
    ranking, pairs, agreement = (
        table.filter(task=first["task"], method=first["method"], tail=first["tail"]) for table in tables
    )
    rho = first["held_out_spearman"]
    unjudged = "named in advance" if first["tail"] else "which nothing judges"  # a statistic of others may not be named
    why = unjudged if rho is None else f"best on held-out tasks, rho {rho:.2f}"
    interval = f"{plan.study.selection.confidence:.0%} interval over solutions"
    lines = [f"models, best first, by {first['method']}, {why} (place, {interval}):"]
    lines += order_lines(ranking, pairs, "model")
    unmeasured = ranking.filter(pl.col("truth").is_null())["model"]
    if rho is not None and len(unmeasured):
        lines.append(f"  without a truth: {', '.join(map(shown, unmeasured))}")
    named = [proxy_name(proxy.statistic, proxy.weighting) for proxy in plan.study.highlighted]
    of_others = tables[1].filter(pl.col("task") == first["task"], pl.col("method").is_in(named))
    for (method,), opposed in opposed_pairs(pairs, of_others).group_by("method", maintain_order=True):
        better, worse = map(shown, opposed.select("better", "worse").row(0))
        count = f"{len(opposed)} of {len(pairs)} pairs" if len(pairs) > 1 else "them"
        lines.append(f"  but {method} tells {count} apart the other way round: {better} before {worse}")
    others = agreement.drop_nulls("spearman").unique("other_method", keep="first", maintain_order=True).head(OTHERS)
    agree = [f"{other} {value:.2f}" for other, value in others.select("other_method", "spearman").iter_rows()]
    return [*lines, *([f"  correlation with the order by other methods: {', '.join(agree)}"] if agree else [])]


def order_lines(ranking: pl.DataFrame, pairs: pl.DataFrame, name: str, most: int = 5) -> list[str]:
    """The order of candidates in at most `most` + 2 lines: the best with their places, and what cannot be told apart.

    `ranking`: one ranking, a row a candidate: the column `name`, place, place_low and place_high. `pairs`: its pairs,
    better, worse and told_apart (`candidate_order.pair_table`).
    """
    rows = ranking.sort("place", name).rows(named=True)
    lines = []
    for row in rows[:most]:
        ends = "" if row["place_low"] is None else f" [{row['place_low']:.3g}, {row['place_high']:.3g}]"
        lines.append(f"  {row['place']:g}{ends} {shown(row[name])}")
    if len(rows) > most:
        lines.append(f"  and {len(rows) - most} more in the table ranking")
    best, unsure = rows[0][name], pairs.filter(~pl.col("told_apart"))
    among = unsure.select("better", "worse").iter_rows()
    like_best = [shown(other) for pair in among if best in pair for other in pair if other != best]
    if pairs["told_apart"].null_count():
        lines.append("  how sure this order is remains unknown: one seed and one score a task")
    elif unsure.is_empty():
        lines.append("  every pair can be told apart")
    else:
        some = ", ".join(like_best[:most]) + f" and {len(like_best) - most} more" * (len(like_best) > most)
        with_best = f", among them {shown(best)} from {some}" if like_best else ""
        lines.append(f"  {len(unsure)} of {len(pairs)} pairs cannot be told apart{with_best}")
    return lines


def forecast_ends(plan: Plan) -> list[str]:
    """What a run is forecast to score at its end, if the study asks for that."""
    if not (plan.study.forecasting and plan.study.forecasting.end):
        return []
    path = plan.results / "forecasting" / "summary.parquet"
    if not path.exists():  # a run may stop before it
        return []
    return [shown(line) for line in told_ends(read_table(path), plan.study.target.metric)]


def report_line(plan: Plan, arguments: Sequence[str]) -> str:
    """Where this run writes its report, or how to make one. `arguments`: Snakemake's command line."""
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
