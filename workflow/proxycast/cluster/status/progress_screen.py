"""Shows how far a study is, on a screen or in plain lines: python -m proxycast.progress config/smoke.yaml.

It ends with the study. The exit status is 0 when every phase is complete and nothing is at work. It is 1 when jobs have
failed and work is left, or the last Snakemake failed or was killed, and for a minute nothing has been at work: no job
runs or waits in Slurm's queue, and no Snakemake runs."""

import math
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from proxycast.cluster.status.slurm_states import SlurmError, waiting_jobs
from proxycast.cluster.status.watch import (
    IDLE_SECONDS,
    WINDOW_SECONDS,
    Job,
    Phase,
    State,
    Watch,
    duration,
    phases_line,
    running_line,
    shown,
)
from proxycast.study.loader import load_plan
from proxycast.study.yaml_files import read_yaml

REFRESH_SECONDS = 5.0
SHOWN_JOBS = 10
LINE_SECONDS = 30.0  # between two plain lines on what has changed; failures are told at once
AT_LEAST_SECONDS = 600.0  # a plain line comes this often even if nothing has changed


def screen(study: str, state: State, now: datetime, height: int | None = None) -> RenderableType:
    """The state in words and bars. `height`: lines of the terminal; without it all failures are shown."""
    parts: list[RenderableType] = [Text(f"{study}  {now:%Y-%m-%d %H:%M:%S}", style="bold"), _bars(state.phases)]
    if state.tokens_per_second is not None:
        parts.append(Text(f"{state.tokens_per_second:,.0f} tokens/s, over at most {WINDOW_SECONDS / 60:.0f} minutes"))
    parts += [Text(""), _running(state.running, now)]
    room = math.inf if height is None else height - len(state.phases) - min(len(state.running), SHOWN_JOBS) - 8
    return Group(*parts, *_failures(state.failed, room))


def _bars(phases: Iterable[Phase]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for phase in phases:
        left = f"{phase.total - phase.done:,} left" if phase.done < phase.total else "done"
        if phase.done < phase.total and phase.seconds_left is not None:
            left += f", about {duration(phase.seconds_left)}"
        bar = ProgressBar(total=1.0, completed=phase.share, width=30)
        table.add_row(phase.name, bar, f"{phase.done:,} of {phase.total:,}", left)
    return table


def _running(jobs: list[Job], now: datetime) -> RenderableType:
    if not jobs:
        return Text("no job runs" + ("; those in the queue: squeue --me" if shutil.which("squeue") else ""))
    table = Table.grid(padding=(0, 2))
    for job in jobs[:SHOWN_JOBS]:
        where = job.last.host + (f", Slurm job {job.last.slurm_job}" if job.last.slurm_job else "")
        since = duration((now - job.last.started).total_seconds())
        said = Text(job.stalls, style="bold yellow") if job.stalls else Text(" ".join(job.last_lines(1)))
        said.overflow = "ellipsis"
        table.add_row(Text(job.label), f"for {since}", Text(shown(where)), said)
    table.columns[-1].no_wrap = True
    hidden = len(jobs) - SHOWN_JOBS
    table.title, table.title_justify = f"{len(jobs)} jobs run" + (f", {hidden} not shown" if hidden > 0 else ""), "left"
    return table


def _failures(jobs: list[Job], room: float) -> Iterator[RenderableType]:
    """Each failed job with the end of its log, as many as there is room for."""
    if jobs:
        yield Text(f"\n{len(jobs)} jobs failed or were killed, and have not been started again", style="bold red")
    for number, job in enumerate(jobs):
        lines = [f"    {line}" for line in job.last_lines()]
        room -= 2 + len(lines)
        if number and room < 0:
            yield Text(f"and {len(jobs) - number} more, such as {job.label}: {shown(job.log)}", style="red")
            return
        yield Text(f"{job.label}: {shown(job.why)}\n  {shown(job.log)}", style="red")
        yield Text("\n".join(lines), style="dim")


class Follower:
    """Tells in plain lines what has changed between looks."""

    def __init__(self, tell: Callable[[str], None]):
        self.tell = tell
        self._counts: list[tuple[int, int]] | None = None
        self._told_at = -math.inf
        self._known: set[tuple[str, datetime]] = set()  # failures and stalls: job, attempt

    def see(self, state: State, now: float) -> None:
        """Tell what is new in a look, at `now` (seconds since 1970); called with every look."""
        then = datetime.fromtimestamp(now)
        for job in state.failed:
            if self._is_new(job.label, job.last.started):
                self.tell(f"{then:%Y-%m-%d %H:%M:%S} {job.label}: {shown(job.why)}; log: {shown(job.log)}")
        for job in state.running:
            if job.stalls and self._is_new(f"stalls: {job.label}", job.last.started):
                self.tell(f"{then:%Y-%m-%d %H:%M:%S} {job.label} {job.stalls}; log: {shown(job.log)}")
        counts = [(phase.done, phase.total) for phase in state.phases]
        since = now - self._told_at
        if since >= AT_LEAST_SECONDS or (counts != self._counts and since >= LINE_SECONDS):
            work = running_line(state.running, then, shown=1)
            queue = f", {len(state.queued)} back in the queue" if state.queued else ""
            idle = "" if state.is_at_work or state.snakemake is None else ", no Snakemake runs"
            self.tell(f"{then:%Y-%m-%d %H:%M:%S} {phases_line(state.phases)}; {work}{queue}{idle}")
            self._counts, self._told_at = counts, now

    def _is_new(self, label: str, started: datetime) -> bool:
        is_new = (label, started) not in self._known
        self._known.add((label, started))
        return is_new


def watched(watch: Watch, show: Callable[[State, float], None]) -> State:
    """Look and show until the study has ended. The last look is returned, and not shown."""
    idle_since = None
    while True:
        now = time.time()
        state = watch.look(now)
        if state.is_at_work or not (state.is_complete or state.has_failed):
            idle_since = None
        else:
            idle_since = now if idle_since is None else idle_since
            if not state.has_failed or (now - idle_since >= IDLE_SECONDS and not _is_queued()):
                return state
        show(state, now)
        time.sleep(REFRESH_SECONDS)


def _is_queued() -> bool:
    """Whether jobs of this folder wait in Slurm's queue, as they may after Snakemake has ended.

    If Slurm does not answer: whether it has ever had a job from here.
    """
    try:
        return bool(waiting_jobs(Path()))
    except SlurmError:
        return Path(".snakemake/slurm_logs").is_dir()


def follow_study(study: str, watch: Watch) -> int:
    """Show the study until it has ended, then what became of it; the exit status."""
    if sys.stdout.isatty():
        with Live(screen=True, auto_refresh=False) as live:

            def show(state: State, now: float) -> None:
                then = datetime.fromtimestamp(now)
                live.update(screen(study, state, then, live.console.height), refresh=True)

            state = watched(watch, show)
    else:
        state = watched(watch, Follower(lambda line: print(line, flush=True)).see)
    _print(screen(study, state, datetime.now()))
    if not state.has_failed:
        print(f"{study}: ended, all phases are complete", flush=True)
        return 0
    ended = {"failed": "has failed", "killed": "was killed"}.get(state.snakemake.state if state.snakemake else "")
    print(f"{study}: ended with failures; no job runs, and Snakemake {ended or 'does not run'}", flush=True)
    return 1


def _print(screen: RenderableType) -> None:
    """Print it in full; wide if not on a terminal, so that lines can be searched."""
    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(screen)
    sys.stdout.flush()


def show_progress(study: Path, once: bool = False) -> int:
    """Follow a study until it has ended, or print its screen `once`; the exit status."""
    plan = load_plan(read_yaml(study), where=str(study))
    watch = Watch(plan)
    if not once:
        return follow_study(plan.study.study, watch)
    _print(screen(plan.study.study, watch.look(time.time()), datetime.now()))
    return 0
