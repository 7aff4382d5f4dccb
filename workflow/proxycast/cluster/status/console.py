"""Progress on Snakemake's console while jobs run: how far each phase is, what runs, and what hinders the study.

A daemon thread of the main process looks at the study once a minute and logs what has changed. Hindrances are logged as
warnings after some minutes, and again every hour: jobs that Slurm holds back, jobs that have been silent for long, a
Slurm that does not answer, jobs that are lost. The thread never delays the end of Snakemake and never breaks it.
"""

import logging
import re
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from proxycast.cluster.status.slurm_states import SlurmError, require_accounting, waiting_jobs
from proxycast.cluster.status.watch import SNAKEMAKE, State, Watch, phases_line, running_line, shown
from proxycast.jobs import Presence
from proxycast.study.checkpoints import Checkpoint
from proxycast.study.study_plan import Plan

if TYPE_CHECKING:
    from snakemake.workflow import Workflow

LOOK_SECONDS = 60.0
LOOK_SHARE = 50  # the thread waits at least this many times as long as its last look took
QUEUE_SECONDS = 300.0  # between two questions to Slurm; what hinders the study is told when it was there before
REPEAT_SECONDS = 3600.0
SHOWN_RUNNING = 3
SHOWN_NAMES = 5
# Reasons of Slurm that pass by themselves; a job that waits for one of them is told of only while nothing else moves.
# Limits of a user or a group pass when other jobs end; what one job may ask for, and budgets that are used up, do not.
ORDINARY = re.compile(
    "(Priority|Resources|None|BeginTime|Dependency|Cleaning|JobArrayTaskLimit|Prolog"
    "|(QOS|Assoc)(?!.*(PerJob|Wall|Minutes))\\w*Limit)"
)
ADVICE = {
    "JobHeldUser": "release them: scontrol release {}",
    "JobHeldAdmin": "an administrator holds them",
    "launch failed requeued held": "a node failed to start them; release them: scontrol release {}",
}


class Progress:
    """Tells of one run of Snakemake from `start` to `end`."""

    def __init__(self, workflow: "Workflow", plan: Plan, checkpoints: list[Checkpoint], logger: logging.Logger):
        """`checkpoints`: all of the plan."""
        self.workflow, self.plan, self.checkpoints, self.logger = workflow, plan, checkpoints, logger
        self._presence: Presence | None = None
        self._ended = threading.Event()
        self._telling = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._shown: tuple | None = None  # what the last lines told
        self._moved = time.time()  # when something was new for the last time
        self._hindrances: dict[str, tuple[float, float]] = {}  # what -> since when, told again when
        self._asked = -float("inf")

    def start(self) -> None:
        """Begin, unless files are only touched."""
        if self.workflow.touch:
            return
        try:
            self._presence = Presence(self.plan.results / "logs" / f"{SNAKEMAKE}.log")
        except OSError as error:
            self.logger.warning(f"python -m proxycast.progress will not see that Snakemake runs: {error}")
        self._thread.start()

    def end(self, state: Literal["done", "failed"]) -> None:
        """Log nothing after this, and wait for no look that goes on."""
        with self._telling:
            self._ended.set()
        if self._presence:
            try:
                self._presence.end(state)
            except OSError as error:  # such as a full disk
                self.logger.warning(f"python -m proxycast.progress will take this Snakemake for a killed one: {error}")

    def _run(self) -> None:
        try:
            self._require_status()
            watch, took = Watch(self.plan, self.checkpoints), 0.0
            while not self._ended.wait(max(LOOK_SECONDS, LOOK_SHARE * took)):
                began = time.monotonic()
                if self._presence:
                    self._presence.touch()
                self.look(watch, time.time())
                took = time.monotonic() - began
        except Exception as error:
            self._tell(logging.WARNING, f"the console tells of no progress any more: {type(error).__name__}: {error}")

    def look(self, watch: Watch, now: float) -> None:
        """Tell what has changed since the last look, and what has hindered the study for long."""
        state, then = watch.look(now, counts_tokens=False), datetime.fromtimestamp(now)
        seen = (
            [(phase.done, phase.total) for phase in state.phases],
            [(job.label, job.last.started, job.last_lines(1)) for job in state.running],
        )
        if seen != self._shown:
            self._shown, self._moved = seen, now
            self._tell(logging.INFO, f"{then:%H:%M:%S} {phases_line(state.phases)}")
            if state.running:
                self._tell(logging.INFO, f"         {running_line(state.running, then, SHOWN_RUNNING)}")
        if now - self._asked >= QUEUE_SECONDS:
            self._asked = now
            self._tell_hindrances(dict(self._find_hindrances(state, now)), now)

    def _tell_hindrances(self, found: dict[str, str], now: float) -> None:
        self._hindrances = {what: times for what, times in self._hindrances.items() if what in found}
        for what, line in found.items():
            since, again = self._hindrances.setdefault(what, (now, now + QUEUE_SECONDS))
            if now >= again:
                self._hindrances[what] = since, now + REPEAT_SECONDS
                self._tell(logging.WARNING, f"{datetime.fromtimestamp(now):%H:%M:%S} {line}")

    def _find_hindrances(self, state: State, now: float) -> Iterator[tuple[str, str]]:
        """(What is waited for, the line that tells it)."""
        for job in state.running:
            if job.stalls:
                yield f"{job.label} {job.last.started}", f"{job.label} {job.stalls}; log: {shown(job.log)}"
        is_still = now - self._moved >= QUEUE_SECONDS
        still = f"nothing new for {(now - self._moved) / 60:.0f} min: " if is_still else ""
        try:
            waiting = [] if self.workflow.local_exec else waiting_jobs(Path())
        except SlurmError as error:
            yield "Slurm", f"{still}Slurm does not answer, Snakemake waits for it ({error})"
            return
        for reason in dict.fromkeys(job.reason for job in waiting):
            jobs = [job for job in waiting if job.reason == reason]
            if not ORDINARY.fullmatch(reason) or (is_still and not state.running):
                numbers = [job.number for job in jobs]
                names = _names(job.comment or job.number for job in jobs)
                advice = ADVICE.get(reason, "").format(",".join(numbers))
                yield (
                    reason,
                    (
                        f"{still}{len(jobs)} jobs wait in Slurm's queue for the reason {reason}: {names}"
                        + (f"; {advice}" if advice else f"; see: scontrol show job {numbers[0]}")
                    ),
                )
        if is_still and not (waiting or state.running or state.queued or self.workflow.local_exec):
            names = _names(job.name for job in list(self.workflow.scheduler.running))
            if names:
                yield "unknown", f"{still}no job runs or waits in a queue, but Snakemake waits for the end of {names}"

    def _require_status(self) -> None:
        """Warn at once if Slurm's plugin would ask sacct for the states of jobs, and sacct does not answer."""
        settings = self.workflow.executor_settings
        command = getattr(settings, "status_command", None)
        plugin = sys.modules.get("snakemake_executor_plugin_slurm")
        if command is None or plugin is None or not plugin.is_query_tool_available("sacct"):
            return
        # The plugin's own rule: squeue serves only where ended jobs stay for some checks.
        kept, wanted = plugin.get_min_job_age(), 3 * settings.init_seconds_before_status_checks
        if command == "squeue" and kept is not None and kept >= wanted:
            return
        try:
            require_accounting()
        except SlurmError as error:
            why = (
                "slurm-status-command is sacct; set it to squeue in slurm/config.yaml"
                if command == "sacct"
                else f"squeue forgets ended jobs after {kept} s (MinJobAge), so that Slurm's plugin asks sacct; set "
                "slurm-init-seconds-before-status-checks to a third of it, or less"
            )
            self._tell(logging.ERROR, f"Snakemake will not learn when jobs end: {error}. {why}.")

    def _tell(self, level: int, line: str) -> None:
        """Log a line until the end. `--quiet progress` leaves out all but warnings."""
        from snakemake.settings.enums import Quietness

        with self._telling:
            if not self._ended.is_set():
                self.logger.log(
                    level, shown(line), extra={"quietness": Quietness.PROGRESS} if level < logging.WARNING else {}
                )


def _names(names: Iterator[str]) -> str:
    """A few of them."""
    found = sorted(names)
    rest = f" and {len(found) - SHOWN_NAMES} more" if len(found) > SHOWN_NAMES else ""
    return ", ".join(found[:SHOWN_NAMES]) + rest
