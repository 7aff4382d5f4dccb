"""Looks at a study: how far each phase is, which jobs run or have failed, whether Snakemake runs.

It reads the results folder alone, the files of each phase and the logs of the jobs, and writes nothing. So it works for
everybody who can read that folder, with any executor, and without a Snakemake. Only the user of the jobs can read the
logs. Files of an earlier setting count until the job that makes them again begins to replace them.

Snakemake holds a lock on logs/snakemake.attempts, and touches that file every minute for file systems without locks.
"""

import math
import os
import re
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from proxycast.cluster.status.slurm_states import AT_WORK, QUEUED, slurm_states
from proxycast.jobs import HANGING, Attempt, attempts, attempts_file, shown
from proxycast.study.checkpoint_plan import plan_checkpoints
from proxycast.study.checkpoints import Checkpoint, base_run, scored_checkpoints, scoring_jobs
from proxycast.study.study_plan import Plan
from proxycast.tables import UNREADABLE, is_whole_parquet

WINDOW_SECONDS = 900.0  # what the rate is measured over: long enough for a few checkpoints of a large model
COUNTED_TABLES = 50  # the newest ones, whose rows tell how many tokens a checkpoint has
LAST_LINES = 10
IDLE_SECONDS = 60.0  # that nothing is at work before a study with failures has ended: a Snakemake may be planning
ALIVE_SECONDS = 180.0  # a Snakemake touches its log every minute, and is late while the machine is busy
STALL_TIMES = 10  # a job stalls when it is silent for this many times its usual interval,
STALL_SECONDS = 300.0  # and for at least this long;
SILENT_SECONDS = 1800.0  # where nothing tells what is usual, for this long
SNAKEMAKE = "snakemake"  # whose log stands beside those of the jobs
LINE_CHARACTERS = 100  # of what a job said last, in a line that tells of several jobs
BAR = re.compile(r"\|[█▏▎▍▌▋▊▉# ]*\|")  # of tqdm; the numbers beside it tell the same
EXPERIMENTS = {  # experiment -> a table and a figure that it always has
    "data_selection": ("summary.parquet", "pareto_frontier.png"),
    "model_selection": ("ranking.parquet", "models_ranked.png"),
    "forecasting": ("errors.parquet", "error_over_horizon.png"),
}
RANKED = EXPERIMENTS | {"data_selection": ("ranking.parquet", "agreement_of_proxies.png")}  # without a truth
PHASE_RULES = {  # phase -> rules whose jobs work on it
    "weights": ("train_corpus", "post_train", "train_run", "download_run", "convert_run"),
    "token statistics": ("score",),
    "targets": ("score",),
    "lm-eval": ("evaluate_harness",),
    "proxies": ("solution_proxies",),
    "experiments": tuple(f"{name}{part}" for name in EXPERIMENTS for part in ("", "_figures")),
}


@dataclass(frozen=True)
class Job:
    """A job as its log tells of it."""

    rule: str
    name: str  # what its log is called; empty for the only job of a rule
    log: Path
    last: Attempt
    slurm_state: str | None = None  # where Slurm knows it, of one that is not known to have ended
    silent_seconds: float = 0.0  # since its last new checkpoint or line; of one that runs
    usual_seconds: float | None = None  # between its checkpoints, or those of its rule; None where nothing tells

    @property
    def label(self) -> str:
        return shown(f"{self.rule} {self.name}".rstrip())

    @property
    def is_running(self) -> bool:
        """A file system without locks makes every running job look killed, unless Slurm knows better."""
        return self.last.state == "running" or self.slurm_state in AT_WORK

    @property
    def is_failed(self) -> bool:
        """Or killed, unless Slurm has queued it again, as after a preemption."""
        return self.last.state in ("failed", "killed") and self.slurm_state not in AT_WORK | QUEUED

    @property
    def is_queued(self) -> bool:
        """Slurm has it in its queue again."""
        return self.slurm_state in QUEUED

    @property
    def stalls(self) -> str | None:
        """How long it has been silent, if that is much longer than usual."""
        if self.usual_seconds is None:
            limit, usually = SILENT_SECONDS, ""
        else:
            limit = max(STALL_SECONDS, STALL_TIMES * self.usual_seconds)
            usually = f", usually {minutes(self.usual_seconds)}"
        if not self.is_running or self.silent_seconds < limit:
            return None
        return f"stalls: nothing new for {minutes(self.silent_seconds)}{usually}"

    @property
    def why(self) -> str:
        """Why its last attempt ended without success."""
        if self.last.state == "failed":
            return next((line for line in reversed(self.last.lines) if line.startswith("error: ")), "failed")
        return f"killed ({self.slurm_state or 'no reason known'})"

    def last_lines(self, count: int = LAST_LINES) -> list[str]:
        return [shown(line) for line in self.last.lines[-count:]]


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
    """The state of a study at one moment."""

    phases: list[Phase]
    tokens_per_second: float | None
    running: list[Job]
    failed: list[Job]  # killed ones too
    queued: list[Job] = field(default_factory=list)  # that had begun, and are in Slurm's queue again
    snakemake: Attempt | None = None  # the last one that ran this study
    snakemake_runs: bool = False

    @property
    def is_complete(self) -> bool:
        return all(phase.done == phase.total for phase in self.phases)

    @property
    def is_at_work(self) -> bool:
        return bool(self.running or self.queued or self.snakemake_runs)

    @property
    def has_failed(self) -> bool:
        """Whether the user has to act: jobs failed and work is left, or the last Snakemake failed or was killed.

        In the second case all files may be there, but from an earlier run.
        """
        gave_up = self.snakemake is not None and self.snakemake.state != "done" and not self.snakemake_runs
        return gave_up or bool(self.failed and not self.is_complete)


class Watch:
    """Looks at a study repeatedly, and reads only what has changed since the last look."""

    def __init__(self, plan: Plan, checkpoints: list[Checkpoint] | None = None):
        """`checkpoints`: all of the plan, where they are known already."""
        self.results = plan.results
        checkpoints = scored_checkpoints(plan, plan_checkpoints(plan) if checkpoints is None else checkpoints)
        self.jobs = scoring_jobs(plan, checkpoints)
        given = {corpus.name for corpus in plan.corpora if corpus.checkpoints}
        made = [c for c in checkpoints if c.corpus not in given or c.revision or c.convert_from]
        self.made = [(c, *c.folder.rsplit("/", 1)) for c in made]
        self.run_folders: dict[tuple[bool, str], set[str]] = {}  # (of a whole corpus, name of a job) -> folders
        for c, run, _ in self.made:
            self.run_folders.setdefault((True, c.corpus), set()).add(run)
            for name in {c.run, base_run(c)}:  # one job post-trains a run
                self.run_folders.setdefault((False, name), set()).add(run)
        self.measured, self.by_harness = bool(plan.measured_tasks), bool(plan.harness_tasks)
        wanted = (plan.selects_data, plan.selects_models, plan.study.forecasting)
        files = EXPERIMENTS if plan.study.target else RANKED
        self.experiments = {name: files[name] for name, is_wanted in zip(files, wanted, strict=True) if is_wanted}
        self._folders: dict[str, tuple[int, dict[str, float]]] = {}  # folder -> when it changed, what it held
        self._seen: dict[str, dict[str, float]] = {}  # the same, of this look
        self._logs: dict[Path, tuple[tuple[int, int], Attempt | None]] = {}  # log -> (when changed, size), last attempt
        self._rows: dict[tuple[Path, float], int] = {}
        self._ended: dict[str, str] = {}

    def look(self, now: float, counts_tokens: bool = True) -> State:
        """`counts_tokens`: read the rows of the newest tables, from which the tokens per second follow."""
        self._seen = {}
        snakemakes, jobs = self._all_jobs()
        running = [job for job in jobs if job.is_running]
        read = {job: self._tables(f"token_stats/{job}") for job in self.jobs}
        phases = [self._phase(name, found, jobs, now) for name, found in self._work(read, jobs) if found]
        since = self._active_since(["score"], jobs, now) if counts_tokens else None
        return State(
            phases=phases,
            tokens_per_second=self._tokens_per_second(read, since, now),
            running=self._with_silence(sorted(running, key=lambda job: job.last.started), now),
            failed=[job for job in jobs if job.is_failed],
            queued=[job for job in jobs if job.is_queued],
            snakemake=snakemakes[0].last if snakemakes else None,
            snakemake_runs=any(self._runs(found, now) for found in snakemakes),
        )

    def _runs(self, snakemake: Job, now: float) -> bool:
        """By its lock, or, on a file system without locks, by the time of its log."""
        touched = self._logs[snakemake.log][0][0] / 1e9
        return snakemake.is_running or (snakemake.last.ended is None and now - touched < ALIVE_SECONDS)

    def _with_silence(self, running: list[Job], now: float) -> list[Job]:
        """The jobs with how long each has been silent, and how long the steps of its work usually take."""
        parts = {job.log: sorted(self._parts(job)) for job in running}
        steps = {job.log: [b - a for a, b in zip(parts[job.log], parts[job.log][1:])] for job in running}
        of_rule: dict[str, list[float]] = {}
        for job in running:
            of_rule.setdefault(job.rule, []).extend(steps[job.log])
        found = []
        for job in running:
            # A worker that waits for one that hangs says so every minute, which is no news.
            is_news = not any(map(HANGING.search, job.last_lines(1)))
            logged = [self._logs[job.log][0][0] / 1e9] if is_news else []
            heard = max([job.last.started.timestamp(), *parts[job.log][-1:], *logged])
            usual = statistics.median(steps[job.log] or of_rule[job.rule] or [math.nan])
            found.append(replace(job, silent_seconds=now - heard, usual_seconds=None if math.isnan(usual) else usual))
        return found

    def _parts(self, job: Job) -> list[float]:
        """When each checkpoint that a job has made, or measured, in its last attempt was written."""
        if job.rule == "score":
            folders = [self._tables(f"{kind}/{job.name}") for kind in ("token_stats", "targets")]
        else:
            of_corpus = job.rule == "train_corpus"
            runs = self.run_folders.get((of_corpus, job.name), ()) if job.rule in PHASE_RULES["weights"] else ()
            folders = [self._entries(run) for run in runs]
        begun = job.last.started.timestamp()
        return [written for folder in folders for written in folder.values() if written >= begun]

    def _work(
        self, read: Mapping[str, Mapping[str, float]], jobs: list[Job]
    ) -> Iterator[tuple[str, list[tuple[float, float | None]]]]:
        """Phase -> (work, when it was done or None) of each of its files.

        Work is the parameters of the models: all of them to fetch or train, the active ones to compute with.
        """
        all_read = {name: written for tables in read.values() for name, written in tables.items()}
        records = self._entries(f"{self.results}/revisions")  # stay when weights of the hub are removed
        made = (
            (c, self._entries(run).get(step) or records.get(f"{c.run}.json") or all_read.get(c.checkpoint))
            for c, run, step in self.made
        )
        yield "weights", [(c.parameters, written) for c, written in made]
        scored = [(job, c) for job, found in self.jobs.items() for c in found]
        yield (
            "token statistics",
            [(c.active_parameters, all_read.get(c.checkpoint)) for _, c in scored if c.role != "target"],
        )
        if self.measured:
            tables = {job: self._tables(f"targets/{job}") for job in self.jobs}
            yield "targets", [(c.active_parameters, tables[job].get(c.checkpoint)) for job, c in scored]
        if self.by_harness:
            tables = self._tables("harness")
            yield (
                "lm-eval",
                [(sum(c.active_parameters for c in found), tables.get(job)) for job, found in self.jobs.items()],
            )
        tables = self._tables("proxies")
        yield "proxies", [(1, tables.get(corpus)) for corpus in dict.fromkeys(c.corpus for _, c in scored)]
        # A job of an experiment writes many files: one stands for all, unless the job is writing them or has failed.
        unfinished = {job.rule for job in jobs if job.last.state != "done"}
        outputs = [
            (rule, self._entries(f"{self.results}/{name}").get(file))
            for name in self.experiments
            for rule, file in zip((name, f"{name}_figures"), self.experiments[name])
        ]
        yield "experiments", [(1, None if rule in unfinished else written) for rule, written in outputs]

    def _phase(self, name: str, work: list[tuple[float, float | None]], jobs: list[Job], now: float) -> Phase:
        total, done = sum(size for size, _ in work), sum(size for size, written in work if written)
        since = self._active_since(PHASE_RULES[name], jobs, now)
        recent = sum(size for size, written in work if written and since and written >= since)
        left = (total - done) / recent * (now - since) if recent else None
        return Phase(name, sum(written is not None for _, written in work), len(work), done / total, left)

    def _active_since(self, rules: Collection[str], jobs: list[Job], now: float) -> float | None:
        """Since when, within the window, jobs of these rules have run; None if none runs now."""
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
        """Tokens in the tables that were written since then, by the mean rows of the newest ones."""
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
            if not is_whole_parquet(path):
                return 0
            try:
                self._rows[path, written] = pl.scan_parquet(path).select(pl.len()).collect().item()
            except UNREADABLE:  # removed at this moment
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

    def _all_jobs(self) -> tuple[list[Job], list[Job]]:
        """Snakemake, if it has a log, and every job that has one, with Slurm's states of those without an end."""
        logs = sorted(path.with_suffix(".log") for path in self.results.glob("logs/**/*.attempts"))
        last = {log: self._last_attempt(log) for log in logs}
        there = {log: attempt for log, attempt in last.items() if attempt}
        asked = {a.slurm_job for a in there.values() if a.slurm_job and a.state == "killed"}
        states = slurm_states(asked - self._ended.keys()) | self._ended
        self._ended |= {number: state for number, state in states.items() if state not in AT_WORK | QUEUED}
        found = [job_of(log, attempt, states, self.results) for log, attempt in there.items()]
        return [job for job in found if job.rule == SNAKEMAKE], [job for job in found if job.rule != SNAKEMAKE]

    def _last_attempt(self, log: Path) -> Attempt | None:
        """Read anew if the log has grown, or the attempt had not ended: only its lock tells whether it runs."""
        stat = attempts_file(log).lstat()  # a link, which is none of ours, may lead nowhere
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


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def duration(seconds: float) -> str:
    most = timedelta.max.total_seconds() / 2  # a sum over forged records may be longer
    return str(timedelta(seconds=round(max(-most, min(seconds, most)))))


def phases_line(phases: Iterable[Phase]) -> str:
    """Done, total and time left of each phase in one line."""
    words = []
    for phase in phases:
        left = (
            f" (about {duration(phase.seconds_left)} left)" if phase.seconds_left and phase.done < phase.total else ""
        )
        words.append(f"{phase.name} {phase.done:,} of {phase.total:,}{left}")
    return ", ".join(words)


def running_line(running: list[Job], now: datetime, shown: int) -> str:
    """What runs in one line: the jobs that have run longest, each with its last line."""
    if not running:
        return "no job runs"
    words = []
    for job in running[:shown]:
        said = BAR.sub("", " ".join(job.last_lines(1))).strip()[:LINE_CHARACTERS]
        since = duration((now - job.last.started).total_seconds())
        words.append(f"{job.label} for {since}" + (f" ({job.stalls or said})" if job.stalls or said else ""))
    rest = f"; {len(running) - shown} more" if len(running) > shown else ""
    return f"{len(running)} running: " + "; ".join(words) + rest
