"""What Slurm says of jobs: why one was killed, or that it still runs."""

import shutil
import subprocess
from collections.abc import Collection

ANSWER_SECONDS = 20.0  # a controller that is down or overrun must not hold up whoever looks
QUESTIONS = (
    # The controller forgets a job some minutes after its end; the accounting, where there is any, does not.
    ("squeue", "--noheader", "--states=all", "--format=%i|%T", "--jobs"),
    ("sacct", "--noheader", "--allocations", "--parsable2", "--format=JobIDRaw,State", "--jobs"),
)


def slurm_states(jobs: Collection[str]) -> dict[str, str]:
    """Job -> its state, such as OUT_OF_MEMORY, NODE_FAIL, TIMEOUT or RUNNING, of those that Slurm knows."""
    found: dict[str, str] = {}
    for command, *options in QUESTIONS:
        asked = sorted(set(jobs) - found.keys())
        if asked and shutil.which(command):
            found |= _ask([command, *options, ",".join(asked)])
    return found


def _ask(command: list[str]) -> dict[str, str]:
    """Nothing where Slurm does not answer: to know no reason is no fault of the study."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    rows = (line.strip().partition("|") for line in answer.splitlines() if "|" in line)
    return {job: state.split()[0] for job, _, state in rows if state.strip()}  # "CANCELLED by 1000"
