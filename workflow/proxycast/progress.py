"""How far a study is, on one screen: `python -m proxycast.progress config/smoke.yaml`.

It reads what lies in the results folder, the files of each phase and the logs of the jobs, and writes nothing. So it
serves whoever sees that folder, whatever the executor, and while no Snakemake runs. Files that an earlier setting of
the study left count until the job that makes them again has begun to replace them.
"""

import argparse
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from proxycast.checkpoints import plan_checkpoints, scored_checkpoints, scoring_jobs
from proxycast.config import Plan, load_plan, read_yaml
from proxycast.jobs import Attempt, attempts, attempts_file
from proxycast.options import InputError
from proxycast.slurm_states import slurm_states

if TYPE_CHECKING:
    from rich.console import RenderableType

REFRESH_SECONDS = 5.0
WINDOW_SECONDS = 900.0  # what the rate is measured over: long enough for a few checkpoints of a large model
COUNTED_TABLES = 50  # the newest ones, whose rows tell how many tokens a checkpoint has
SHOWN_JOBS = 10
LAST_LINES = 10
RULES = {  # phase -> rules whose jobs work on it
    "weights": ("train_corpus", "train_run", "download_run", "convert_run"),
    "token statistics": ("score",),
    "targets": ("score",),
    "lm-eval": ("evaluate_harness",),
    "proxies": ("solution_proxies",),
}
AT_WORK = {"RUNNING", "COMPLETING", "SUSPENDED"}  # states of Slurm
QUEUED = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "RESIZING"}
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Job:
    """A job as its log tells of it."""

    rule: str
    name: str  # what its log is called; empty for the only job of a rule
    log: Path
    last: Attempt
    slurm_state: str | None = None  # where Slurm knows it, of one that is not known to have ended

    @property
    def label(self) -> str:
        return f"{self.rule} {self.name}".rstrip()

    @property
    def is_running(self) -> bool:
        """A file system without locks makes every running job look killed, unless Slurm knows better."""
        return self.last.state == "running" or self.slurm_state in AT_WORK

    @property
    def is_failed(self) -> bool:
        """Killed ones too, unless Slurm has them in its queue again, as after a preemption."""
        return self.last.state in ("failed", "killed") and self.slurm_state not in AT_WORK | QUEUED

    @property
    def why(self) -> str:
        """Why its last attempt ended without success."""
        if self.last.state == "failed":
            return next((line for line in reversed(self.last.lines) if line.startswith("error: ")), "failed")
        return f"killed ({self.slurm_state or 'no reason known'})"

    def last_lines(self, count: int = LAST_LINES) -> list[str]:
        return [ESCAPES.sub("", line) for line in self.last.lines[-count:]]


@dataclass(frozen=True)
class Phase:
    """How much of one kind of file is there."""

    name: str
    done: int
    total: int
    share: float  # of the work, where large models count for more
    seconds_left: float | None  # None while nothing tells how fast it goes


@dataclass(frozen=True)
class State:
    """What there is to see of a study at one moment."""

    phases: list[Phase]
    tokens_per_second: float | None
    running: list[Job]
    failed: list[Job]  # killed ones too


class Watch:
    """Looks at a study again and again. What has not changed since the last look is not read again."""

    def __init__(self, plan: Plan):
        self.results = plan.results
        checkpoints = scored_checkpoints(plan, plan_checkpoints(plan))
        self.jobs = scoring_jobs(plan, checkpoints)
        given = {corpus.name for corpus in plan.corpora if corpus.checkpoints}
        made = [c for c in checkpoints if c.corpus not in given or c.revision or c.convert_from]
        self.made = [(c, *c.folder.rsplit("/", 1)) for c in made]
        self.measured, self.by_harness = bool(plan.measured_tasks), bool(plan.harness_tasks)
        self._folders: dict[str, tuple[int, dict[str, float]]] = {}  # folder -> when it changed, what it held
        self._seen: dict[str, dict[str, float]] = {}  # the same, of this look
        self._logs: dict[Path, tuple[tuple[int, int], Attempt | None]] = {}
        self._rows: dict[tuple[Path, float], int] = {}
        self._ended: dict[str, str] = {}

    def look(self, now: float) -> State:
        self._seen = {}
        jobs = self._all_jobs()
        running = [job for job in jobs if job.is_running]
        read = {job: self._tables(f"token_stats/{job}") for job in self.jobs}
        phases = [self._phase(name, found, jobs, now) for name, found in self._work(read) if found]
        return State(
            phases=phases,
            tokens_per_second=self._tokens_per_second(read, self._active_since(["score"], jobs, now), now),
            running=sorted(running, key=lambda job: job.last.started),
            failed=[job for job in jobs if job.is_failed],
        )

    def _work(self, read: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, list[tuple[float, float | None]]]]:
        """Phase -> (work, when it was done or None) of each of its files. Work is the parameters of the models."""
        all_read = {name: written for tables in read.values() for name, written in tables.items()}
        records = self._entries(f"{self.results}/revisions")  # stay when weights of the hub are removed
        made = (
            (c, self._entries(run).get(step) or records.get(f"{c.run}.json") or all_read.get(c.checkpoint))
            for c, run, step in self.made
        )
        yield "weights", [(c.parameters, written) for c, written in made]
        scored = [(job, c) for job, found in self.jobs.items() for c in found]
        yield "token statistics", [(c.parameters, all_read.get(c.checkpoint)) for _, c in scored if c.role != "target"]
        if self.measured:
            tables = {job: self._tables(f"targets/{job}") for job in self.jobs}
            yield "targets", [(c.parameters, tables[job].get(c.checkpoint)) for job, c in scored]
        if self.by_harness:
            tables = self._tables("harness")
            yield "lm-eval", [(sum(c.parameters for c in found), tables.get(job)) for job, found in self.jobs.items()]
        tables = self._tables("proxies")
        yield "proxies", [(1, tables.get(corpus)) for corpus in dict.fromkeys(c.corpus for _, c in scored)]

    def _phase(self, name: str, work: list[tuple[float, float | None]], jobs: list[Job], now: float) -> Phase:
        total, done = sum(size for size, _ in work), sum(size for size, written in work if written)
        since = self._active_since(RULES[name], jobs, now)
        recent = sum(size for size, written in work if written and since and written >= since)
        left = (total - done) / recent * (now - since) if recent else None
        return Phase(name, sum(written is not None for _, written in work), len(work), done / total, left)

    def _active_since(self, rules: Collection[str], jobs: list[Job], now: float) -> float | None:
        """Since when, within the window, jobs of these rules have been at work; None where none runs now."""
        window = now - WINDOW_SECONDS
        of_rules = [job for job in jobs if job.rule in rules]
        running = [job for job in of_rules if job.is_running]
        ended = [job for job in of_rules if job.last.ended and job.last.ended.timestamp() > window]
        if not running:
            return None
        return max(window, min(job.last.started.timestamp() for job in running + ended))

    def _tokens_per_second(
        self, read: Mapping[str, Mapping[str, float]], since: float | None, now: float
    ) -> float | None:
        """Tokens of the tables that were written since then; the rows of the newest ones tell how many each has."""
        if since is None:
            return None
        recent = [
            (written, self.results / "token_stats" / job / f"{name}.parquet")
            for job, tables in read.items()
            for name, written in tables.items()
            if written >= since
        ]
        rows = [self._count_rows(path, written) for written, path in sorted(recent)[-COUNTED_TABLES:]]
        return sum(rows) / max(len(rows), 1) * len(recent) / max(now - since, 1.0)

    def _count_rows(self, path: Path, written: float) -> int:
        """Rows of a table, from its footer."""
        if (path, written) not in self._rows:
            try:
                self._rows[path, written] = pl.scan_parquet(path).select(pl.len()).collect().item()
            except (OSError, pl.exceptions.PolarsError):  # removed at this moment
                return 0
        return self._rows[path, written]

    def _tables(self, folder: str) -> dict[str, float]:
        """Name -> when it was written, of the tables in a folder of the results."""
        found = self._entries(f"{self.results}/{folder}")
        return {name.removesuffix(".parquet"): written for name, written in found.items() if name.endswith(".parquet")}

    def _entries(self, folder: str) -> dict[str, float]:
        """Name -> when it was written, of all that a folder holds; what is being written has a hidden name."""
        if folder not in self._seen:
            self._seen[folder] = self._list(folder)
        return self._seen[folder]

    def _list(self, folder: str) -> dict[str, float]:
        """A folder's own time changes with every name that comes or goes."""
        try:
            changed = os.stat(folder).st_mtime_ns
            if self._folders.get(folder, (None,))[0] != changed:
                entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
                self._folders[folder] = changed, {entry.name: entry.stat().st_mtime for entry in entries}
        except OSError:  # not there yet, or going at this moment
            return {}
        return self._folders[folder][1]

    def _all_jobs(self) -> list[Job]:
        """Every job that has a log, and what Slurm says of those that the log does not see end."""
        logs = sorted(path.with_suffix(".log") for path in self.results.glob("logs/**/*.attempts"))
        last = {log: self._last_attempt(log) for log in logs}
        there = {log: attempt for log, attempt in last.items() if attempt}
        asked = {a.slurm_job for a in there.values() if a.slurm_job and a.state == "killed"}
        states = slurm_states(asked - self._ended.keys()) | self._ended
        self._ended |= {number: state for number, state in states.items() if state not in AT_WORK | QUEUED}
        return [job_of(log, attempt, states, self.results) for log, attempt in there.items()]

    def _last_attempt(self, log: Path) -> Attempt | None:
        """One that has ended stays as it is until the log grows; whether one runs is seen by its lock alone."""
        stat = attempts_file(log).stat()
        state = stat.st_mtime_ns, stat.st_size
        known, attempt = self._logs.get(log, (None, None))
        if known != state or (attempt and attempt.ended is None):
            attempt = next(iter(attempts(log)[-1:]), None)
            self._logs[log] = state, attempt
        return attempt


def job_of(log: Path, last: Attempt, states: Mapping[str, str], results: Path) -> Job:
    """The job of a log: results/<study>/logs/<rule>/<name>.log, or logs/<rule>.log."""
    rule, *name = log.relative_to(results / "logs").with_suffix("").parts
    return Job(rule, "/".join(name), log, last, states.get(last.slurm_job) if last.state != "done" else None)


def screen(study: str, state: State, now: datetime, height: int | None = None) -> "RenderableType":
    """The state in words and bars. `height`: lines that there are; without it all failures are shown."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(f"{study}  {now:%Y-%m-%d %H:%M:%S}", style="bold"), _bars(state.phases)]
    if state.tokens_per_second is not None:
        parts.append(Text(f"{state.tokens_per_second:,.0f} tokens/s, over at most {WINDOW_SECONDS / 60:.0f} minutes"))
    parts += [Text(""), _running(state.running, now)]
    room = math.inf if height is None else height - len(state.phases) - min(len(state.running), SHOWN_JOBS) - 8
    return Group(*parts, *_failures(state.failed, room))


def _bars(phases: Iterable[Phase]) -> "RenderableType":
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for phase in phases:
        if phase.done == phase.total:
            left = "done"
        elif phase.seconds_left is None:
            left = f"{phase.total - phase.done:,} left"
        else:
            left = f"{phase.total - phase.done:,} left, about {_duration(phase.seconds_left)}"
        bar = ProgressBar(total=1.0, completed=phase.share, width=30)
        table.add_row(phase.name, bar, f"{phase.done:,} of {phase.total:,}", left)
    return table


def _running(jobs: list[Job], now: datetime) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    if not jobs:
        return Text("no job runs" + ("; those in the queue: squeue --me" if shutil.which("squeue") else ""))
    table = Table.grid(padding=(0, 2))
    for job in jobs[:SHOWN_JOBS]:
        where = job.last.host + (f", Slurm job {job.last.slurm_job}" if job.last.slurm_job else "")
        since = _duration((now - job.last.started).total_seconds())
        table.add_row(Text(job.label), f"for {since}", where, Text(" ".join(job.last_lines(1)), overflow="ellipsis"))
    table.columns[-1].no_wrap = True
    hidden = len(jobs) - SHOWN_JOBS
    table.title, table.title_justify = f"{len(jobs)} jobs run" + (f", {hidden} not shown" if hidden > 0 else ""), "left"
    return table


def _failures(jobs: list[Job], room: float) -> Iterator["RenderableType"]:
    """Each failed job with the end of its log, as many as there is room for."""
    from rich.text import Text

    if jobs:
        yield Text(f"\n{len(jobs)} jobs failed or were killed, and have not been started again", style="bold red")
    for number, job in enumerate(jobs):
        lines = [f"    {line}" for line in job.last_lines()]
        room -= 2 + len(lines)
        if number and room < 0:
            yield Text(f"and {len(jobs) - number} more, such as {job.label}: {job.log}", style="red")
            return
        yield Text(f"{job.label}: {ESCAPES.sub('', job.why)}\n  {job.log}", style="red")
        yield Text("\n".join(lines), style="dim")


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m proxycast.progress", description="How far a study is.")
    parser.add_argument("study", type=Path, help="file of the study, as in --configfile")
    parser.add_argument("--once", action="store_true", help="print the screen once, in full")
    arguments = parser.parse_args()
    try:
        plan = load_plan(read_yaml(arguments.study), where=str(arguments.study))
        watch = Watch(plan)
    except InputError as error:
        sys.exit(f"error: {error}")

    from rich.console import Console
    from rich.live import Live

    if arguments.once:
        console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
        console.print(screen(plan.study.study, watch.look(time.time()), datetime.now()))
        return
    with Live(screen=True, auto_refresh=False) as live:
        try:
            while True:
                state = watch.look(time.time())
                live.update(screen(plan.study.study, state, datetime.now(), live.console.height), refresh=True)
                time.sleep(REFRESH_SECONDS)
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
