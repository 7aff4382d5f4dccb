"""Cures of Snakemake's Slurm plugin (2.8.0, which is pinned): faults that end a study, or let it wait for ever."""

import re
import sys
import threading
import time
from collections import Counter
from types import ModuleType

LONGEST_WAIT = 60.0  # seconds between two looks at the jobs
LOOKS = 5  # in a row without a trace of a job, after which it is lost
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 120.0  # seconds until a refused job is submitted again
# What keeps sbatch from submitting any job for a while: slurmctld, munged or the network is away, the queue is full, or
# the partition is being serviced. An old Slurm does not say which limit of a policy a job is over.
PASSING = re.compile(
    "unable to contact slurm controller|standby|timed out|zero bytes were transmitted|no clusters can be reached"
    "|connection refused|connection reset|munge|protocol authentication error|temporarily un|try again|queue full"
    "|nodes are busy|presently disabled|inactive or drain|cannot allocate memory|violates accounting/qos policy",
    re.IGNORECASE,
)
# What the plugin reads of a job.
SLURM_RESOURCES = frozenset(
    "clusters constraint cpus_per_gpu cpus_per_task gpu gpu_manufacturer gpu_model gres mem_mb mem_mb_per_cpu nodes "
    "qos reservation runtime slurm_account slurm_extra slurm_partition tasks tasks_per_gpu tasks_per_node".split()
)
OTHER_NAMES = {"cluster", "slurm_cluster"}  # of `clusters`
WORD = r"(?!-)[A-Za-z0-9_.,:=+@%/-]*"
FIT_FOR_SHELL = {  # resource -> what it may be; any other is a WORD
    "constraint": r"(?!-)[A-Za-z0-9_.,:=+@%/*&|()\[\]-]*",  # such as a100&nvlink, which the plugin quotes
    "slurm_extra": r"[A-Za-z0-9_.,:=+@%/ -]*",  # options, which it does not
}
LIMIT = re.compile(r"error: (\w+Limit)$", re.MULTILINE)  # as in AssocMaxSubmitJobLimit


def repair() -> None:
    """Put the cures into the plugin, where Snakemake has imported it."""
    plugin = sys.modules.get("snakemake_executor_plugin_slurm")
    if plugin is not None:
        _repair_status(plugin)
        _repair_submission(plugin)
        _guard_shell(plugin)
        _keep_outputs(plugin.Executor)


def _repair_status(plugin: ModuleType) -> None:
    """Learn what became of each job, whatever Slurm answers, and soon.

    Before each look at its jobs the plugin asks slurmctld how long a job that has ended is remembered (MinJobAge).
    Without an answer it takes sacct in place of squeue, whether accounting runs or not, and goes on asking it when
    slurmctld is back. Here the last answer stands. sacct calls a job "CANCELLED by 1000", which the plugin takes for
    one that runs. Here the second and third word are left out.

    It waits for ever for a job that Slurm has forgotten, and for one that was preempted for good (PreemptMode=CANCEL).
    Here such a job has ended, unless the other command, squeue or sacct, knows better. After a look at which no job has
    succeeded the plugin waits 10 s longer, up to 180 s. Here it waits half as long again, up to a minute, and begins
    anew when a job has ended, whether it has succeeded or not, and while there is no trace of one.
    """
    executor, get_min_job_age, query_job_status = plugin.Executor, plugin.get_min_job_age, plugin.query_job_status
    check_active_jobs = executor.check_active_jobs
    known: list[int] = []
    last_answer: dict[str, str] = {}  # job -> state
    last_command = ""
    unseen: Counter[str] = Counter()  # job -> looks in a row without a trace of it

    def remembered() -> int | None:
        known.extend(age for age in [get_min_job_age()] if age is not None)
        return known[-1] if known else None

    async def query_states(command: str, logger) -> tuple[dict[str, str] | None, float | None]:
        nonlocal last_answer, last_command
        states, seconds = await query_job_status(command, logger)
        if states is not None:
            states = {job: state.partition(" ")[0] for job, state in states.items()}
            last_answer, last_command = states, command
        return states, seconds

    async def check_jobs(self, active_jobs: list):
        waited, all_seen, still_active = self.next_seconds_between_status_checks, True, 0
        async for job in check_active_jobs(self, active_jobs):
            number = job.external_jobid
            # squeue shows the tasks of a job array under other numbers as long as they wait.
            is_seen = "_" in number or last_answer.get(number, "PREEMPTED") != "PREEMPTED"
            unseen[number] = 0 if is_seen else unseen[number] + 1
            all_seen = all_seen and is_seen
            if unseen[number] >= LOOKS:
                if await has_ended(self, job):
                    continue
                unseen[number] = 0
            still_active += 1
            yield job
        if still_active < len(active_jobs) or not all_seen:
            self.next_seconds_between_status_checks = self.workflow.executor_settings.init_seconds_before_status_checks
        elif active_jobs:
            self.next_seconds_between_status_checks = min(1.5 * waited, LONGEST_WAIT)

    async def has_ended(self, job) -> bool:
        """Whether the other command does not know a living job either; its end is reported."""
        by_squeue = last_command.startswith("sacct")
        query = plugin.query_job_status_squeue if by_squeue else plugin.query_job_status_sacct
        states, _ = await query_job_status(query(self.run_uuid), self.logger)
        state = (states or {}).get(job.external_jobid, "").partition(" ")[0]
        if state == "COMPLETED":
            self.report_job_success(job)
        elif by_squeue and (states is None or state not in ("", "PREEMPTED")):
            return False
        else:
            state = last_answer.get(job.external_jobid) or state or "none, as it has forgotten the job"
            log = [str(job.aux["slurm_logfile"])]
            self.report_job_error(
                job, f"SLURM-job '{job.external_jobid}' is lost: its state is {state}. ", aux_logs=log
            )
        return True

    plugin.get_min_job_age, plugin.query_job_status = remembered, query_states
    executor.check_active_jobs = check_jobs


def _repair_submission(plugin: ModuleType) -> None:
    """Tell a Slurm that takes no jobs just now from a job that it will never take.

    To the plugin either is a failure of the job: while slurmctld is away for a minute, three attempts are gone, each of
    which asks for twice the memory. Here a job that Slurm may take later is submitted again after a pause, in the same
    attempt. It submits in two threads of their own, so the pause holds up further submissions and nothing else.
    """
    executor = plugin.Executor
    report_error, report_submission = executor._report_job_error_threadsafe, executor._report_job_submission_threadsafe
    stopped, lock = threading.Event(), threading.Lock()
    pause, paused_until = 0.0, 0.0  # of both threads

    def submission_failed(self, job_info, msg: str) -> None:
        nonlocal pause, paused_until
        # Behind sbatch's words the plugin shows its call: a page that hides them.
        said = msg.partition("\n    sbatch call:")[0]
        if not _passes(said):
            report_error(
                self, job_info, f"{said} Correct slurm/config.yaml if it asks for what the cluster does not have. "
            )
            return
        with lock:
            now = time.monotonic()
            if now >= paused_until:
                pause = min(2 * pause, LONGEST_PAUSE) or FIRST_PAUSE
                paused_until = now + pause
                self.logger.warning(
                    f"Slurm takes no jobs now; trying again in {pause:.0f} s, in the same attempt. {said}"
                )
        if not stopped.wait(paused_until - now):
            self._job_submission_executor.submit(self.run_job, job_info.job)

    def submitted(self, job_info) -> None:
        nonlocal pause
        pause = 0.0
        report_submission(self, job_info)

    def stopping(end):
        def stop(self) -> None:
            stopped.set()
            self._job_submission_executor.shutdown(wait=False, cancel_futures=True)
            end(self)

        return stop

    executor._report_job_error_threadsafe, executor._report_job_submission_threadsafe = submission_failed, submitted
    executor.cancel, executor.shutdown = stopping(executor.cancel), stopping(executor.shutdown)


def unfit_for_shell(name: str, value: object) -> str | None:
    """Why the value of a resource must not get into a shell's command; None where it may."""
    # A number may be -1, with which the plugin leaves an option out.
    if isinstance(value, int | float) or re.fullmatch(FIT_FOR_SHELL.get(name, WORD), str(value)):
        return None
    also = {"slurm_extra": " and spaces", "constraint": ", brackets, *, & and |"}.get(name, ", and no - in front")
    return f"found {str(value)!r}; give letters, digits and _.,:=+@%/-{also}: a shell reads it"


def _guard_shell(plugin: ModuleType) -> None:
    """Refuse jobs with a resource that a shell would obey: the plugin writes slurm_extra, mem_mb and others as they
    are into a command that a shell of the head node runs, and what it quotes today it may not quote tomorrow."""
    get_submit_command = plugin.get_submit_command

    def guarded(job, *arguments, **keywords) -> str:
        for name in sorted(SLURM_RESOURCES | OTHER_NAMES):
            value = job.resources.get(name)
            if value is not None and (why := unfit_for_shell(name, value)):
                raise plugin.WorkflowError(f"rule {job.name}: resource {name}: {why}")
        return get_submit_command(job, *arguments, **keywords)

    plugin.get_submit_command = guarded


def _keep_outputs(executor: type) -> None:
    """Let the Snakemake of a job remove no output.

    On a node that Slurm has given up it may live on, and end, with an error, when the next attempt has finished the
    same output. The main process removes what a failed job leaves: it alone knows which attempt counts.
    """
    general_args = executor.additional_general_args
    executor.additional_general_args = lambda self: f"{general_args(self)} --keep-incomplete"


def _passes(said: str) -> bool:
    """Whether what sbatch said can change by itself: limits on the number of jobs do, those on their size do not."""
    limit = LIMIT.search(said)
    return "SubmitJob" in limit[1] if limit else bool(PASSING.search(said))
