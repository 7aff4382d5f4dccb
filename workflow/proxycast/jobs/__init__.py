"""How a script of the workflow runs as a job: its log, its attempts, and one process at a time."""

from proxycast.jobs.attempt_log import Attempt, any_runs, attempts, attempts_file, identity_file, shown
from proxycast.jobs.private_files import open_private
from proxycast.jobs.running import HANGING, PROGRESS_SECONDS, STALL_VARIABLE, Presence, job
from proxycast.jobs.takeover import LOCK_SECONDS

# fmt: off
__all__ = [
    "HANGING", "LOCK_SECONDS", "PROGRESS_SECONDS", "STALL_VARIABLE", "Attempt", "Presence",
    "any_runs", "attempts", "attempts_file", "identity_file", "job", "open_private", "shown",
]
