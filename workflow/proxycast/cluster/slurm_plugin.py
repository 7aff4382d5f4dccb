"""Repairs of Snakemake's Slurm plugin (2.8.0, which is pinned): faults that end a study, delay it, or make it hang."""

import re
import sys
import threading
import time
from collections import Counter
from types import ModuleType

LONGEST_CHECK_PAUSE = 60.0  # seconds between two looks at the jobs
LOOKS_WITHOUT_TRACE = 5  # in a row without a trace of a job, after which it is lost
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
JOB_STEP = "--executor slurm-jobstep --jobs 1"  # tells a job's Snakemake to start another one by srun


def repair_plugin() -> None:
    """Repair the plugin if Snakemake has imported it."""
    plugin = sys.modules.get("snakemake_executor_plugin_slurm")
    if plugin is not None:
        _StatusRepair(plugin)
        _repair_submission(plugin)
        _guard_shell(plugin)
        _keep_outputs(plugin.Executor)
        _start_once(plugin.Executor)


class _StatusRepair:
    """Learns what became of each job, whatever Slurm answers, and soon.

    Before each look at its jobs the plugin asks slurmctld how long it remembers a job that has ended (MinJobAge).
    Without an answer it takes sacct in place of squeue, whether accounting runs or not, and goes on with sacct when
    slurmctld is back. Here the last answer stands. sacct calls a job "CANCELLED by 1000", which the plugin takes for a
    running one. Here the second and third word are left out.

    The plugin waits for ever for a job that Slurm has forgotten, and for one that was preempted for good
    (PreemptMode=CANCEL). Here such a job has ended, unless the other command, squeue or sacct, knows better. After a
    look at which no job has succeeded the plugin waits 10 s longer, up to 180 s. Here it waits half as long again, up
    to a minute. It begins anew when a job has ended, whether it has succeeded or not, and while a job leaves no trace.
    """

    def __init__(self, plugin: ModuleType):
        self.plugin, self.check_active_jobs = plugin, plugin.Executor.check_active_jobs
        self.get_min_job_age, self.query_job_status = plugin.get_min_job_age, plugin.query_job_status
        self.job_age: int | None = None
        self.last_answer: dict[str, str] = {}  # job -> state
        self.last_command = ""
        self.unseen: Counter[str] = Counter()  # job -> looks in a row without a trace of it
        plugin.get_min_job_age, plugin.query_job_status = self.remembered, self.query_states
        plugin.Executor.check_active_jobs = lambda executor, active_jobs: self.check_jobs(executor, active_jobs)

    def remembered(self) -> int | None:
        age = self.get_min_job_age()
        self.job_age = self.job_age if age is None else age
        return self.job_age

    async def query_states(self, command: str, logger) -> tuple[dict[str, str] | None, float | None]:
        states, seconds = await self.query_job_status(command, logger)
        if states is not None:
            states = {job: state.partition(" ")[0] for job, state in states.items()}
            self.last_answer, self.last_command = states, command
        return states, seconds

    async def check_jobs(self, executor, active_jobs: list):
        waited, all_seen, still_active = executor.next_seconds_between_status_checks, True, 0
        async for job in self.check_active_jobs(executor, active_jobs):
            number = job.external_jobid
            # squeue shows the tasks of a job array under other numbers as long as they wait.
            is_seen = "_" in number or self.last_answer.get(number, "PREEMPTED") != "PREEMPTED"
            self.unseen[number] = 0 if is_seen else self.unseen[number] + 1
            all_seen = all_seen and is_seen
            if self.unseen[number] >= LOOKS_WITHOUT_TRACE:
                if await self.has_ended(executor, job):
                    continue
                self.unseen[number] = 0
            still_active += 1
            yield job
        if still_active < len(active_jobs) or not all_seen:
            first_pause = executor.workflow.executor_settings.init_seconds_before_status_checks
            executor.next_seconds_between_status_checks = first_pause
        elif active_jobs:
            executor.next_seconds_between_status_checks = min(1.5 * waited, LONGEST_CHECK_PAUSE)

    async def has_ended(self, executor, job) -> bool:
        """Whether the other command does not know a living job either. Then its end is reported."""
        by_squeue = self.last_command.startswith("sacct")
        query = self.plugin.query_job_status_squeue if by_squeue else self.plugin.query_job_status_sacct
        states, _ = await self.query_job_status(query(executor.run_uuid), executor.logger)
        state = (states or {}).get(job.external_jobid, "").partition(" ")[0]
        if state == "COMPLETED":
            executor.report_job_success(job)
        elif by_squeue and (states is None or state not in ("", "PREEMPTED")):
            return False
        else:
            state = self.last_answer.get(job.external_jobid) or state or "none, as it has forgotten the job"
            log = [str(job.aux["slurm_logfile"])]
            executor.report_job_error(
                job, f"SLURM-job '{job.external_jobid}' is lost: its state is {state}. ", aux_logs=log
            )
        return True


def _repair_submission(plugin: ModuleType) -> None:
    """Submit a job again if Slurm takes no jobs for the moment.

    The plugin counts that as a failure of the job: while slurmctld is away for a minute, three attempts are used up,
    each with twice the memory of the last. Here the job is submitted again after a pause, in the same attempt. The
    plugin submits in two threads, so the pause holds up further submissions and nothing else.
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
    """Why the value of a resource must not get into a shell's command, or None."""
    # A number may be -1, with which the plugin leaves an option out.
    if isinstance(value, int | float) or re.fullmatch(FIT_FOR_SHELL.get(name, WORD), str(value)):
        return None
    also = {"slurm_extra": " and spaces", "constraint": ", brackets, *, & and |"}.get(name, ", and no - in front")
    return f"found {str(value)!r}; give letters, digits and _.,:=+@%/-{also}: a shell reads it"


def _guard_shell(plugin: ModuleType) -> None:
    """Refuse jobs with a resource that a shell would interpret: the plugin writes some into a shell's command as they
    are, such as slurm_extra and mem_mb, and its next version may quote fewer."""
    get_submit_command = plugin.get_submit_command

    def guarded(job, *arguments, **keywords) -> str:
        for name in sorted(SLURM_RESOURCES | OTHER_NAMES):
            value = job.resources.get(name)
            if value is not None and (why := unfit_for_shell(name, value)):
                raise plugin.WorkflowError(f"rule {job.name}: resource {name}: {why}")
        return get_submit_command(job, *arguments, **keywords)

    plugin.get_submit_command = guarded


def _keep_outputs(executor: type) -> None:
    """Keep the Snakemake of a job from removing outputs.

    On a node that Slurm has given up it may live on, and fail after the next attempt has finished the same output. The
    main process removes what a failed job leaves: it alone knows which attempt counts.
    """
    general_args = executor.additional_general_args
    executor.additional_general_args = lambda self: f"{general_args(self)} --keep-incomplete"


def _start_once(executor: type) -> None:
    """Start one Snakemake in each job.

    The plugin starts one that reads the study and plans, only to say how srun is to start another one, which does the
    same again and then the work. Both take seconds, and memory of the job. What srun is told, the main process knows.
    Groups, whose members take turns, job arrays, MPI and commands too long for a line need both.
    """
    from snakemake_executor_plugin_slurm_jobstep import get_cpu_setting, get_gpu_setting, get_node_setting

    job_exec = executor.format_job_exec

    def command(self, job) -> str:
        found = job_exec(self, job)
        as_script = self.workflow.executor_settings.pass_command_as_script
        if as_script or self.array_jobs or job.is_group() or "mpi" in job.resources.keys():
            return found
        settings = get_cpu_setting(job, bool(job.resources.get("gpu"))), get_gpu_setting(job), get_node_setting(job)
        step = f"{self.get_python_executable()} -m proxycast.cluster.job_step -n1 --cpu-bind=q {' '.join(settings)}"
        return f"{step} {found.replace(JOB_STEP, '')}"

    executor.format_job_exec = command


def _passes(said: str) -> bool:
    """Whether the refusal of sbatch may pass: limits on the number of jobs do, limits on their size do not."""
    limit = LIMIT.search(said)
    return "SubmitJob" in limit[1] if limit else bool(PASSING.search(said))
