"""What a process of vLLM's ends when its job is gone: itself and its engine, and no process that only has a number."""

import os
import signal
import subprocess
import sys
import time

from proxycast import processes

WORKER = """
import os, time
import proxycast.extraction.engines.workers.vllm_worker
print("worker", os.getpid(), flush=True)
time.sleep(120)
"""
# The worker's parent: with an exec of nothing between them, as vLLM's engine is to its workers.
ENGINE = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
JOB = """
import os, subprocess, sys
from proxycast import processes
start = processes.start_of(os.getpid()) + int(sys.argv[3])
os.environ["PROXYCAST_JOB_PROCESS"] = f"{os.getpid()} {start}"
engine = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]])
print("engine", engine.pid, flush=True)
engine.wait()
"""


def job(shift: int = 0) -> tuple[subprocess.Popen, int, int | None]:
    """A job, its engine and its worker; without the worker where that ends at once."""
    command = [sys.executable, "-c", JOB, ENGINE, WORKER, str(shift)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    engine = int(process.stdout.readline().split()[1])
    said = process.stdout.readline().split()
    return process, engine, int(said[1]) if len(said) == 2 else None


def gone(*numbers: int, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while any(processes.start_of(number) for number in numbers) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(processes.start_of(number) for number in numbers)


def test_a_worker_and_its_engine_end_with_the_job():
    process, engine, worker = job()
    process.kill()
    process.wait()
    assert gone(engine, worker)
    process.stdout.close()


def test_a_worker_whose_engine_is_gone_ends_alone():
    """Its parent is now whoever takes orphans up, and the engine's number may be anybody's."""
    process, engine, worker = job()
    os.kill(engine, signal.SIGKILL)
    process.wait()
    assert gone(engine, worker)
    assert processes.start_of(os.getppid()) and processes.start_of(1)
    process.stdout.close()


def test_a_job_whose_number_was_used_again_is_gone_and_its_children_are_not_ours():
    """The job in the environment is another one than the process with its number, which has started our parent."""
    process, engine, worker = job(shift=-1)
    assert worker is None or gone(worker)
    assert process.wait(30) == 0  # the engine has ended by itself, with the worker, and the job with it
    process.stdout.close()


# As four workers, each in an environment of its own; what the module imports takes most of their time.
WITHOUT_A_JOB = """
import os, sys, time
import proxycast.extraction.token_stats
for said in sys.argv[1:]:
    if not os.fork():
        os.environ["PROXYCAST_JOB_PROCESS"] = said
        import proxycast.extraction.engines.workers.vllm_worker
        time.sleep(2.5)
        os._exit(0)
print([os.wait()[1] for _ in sys.argv[1:]])
"""


def test_without_a_job_nothing_is_watched():
    command = [sys.executable, "-c", WITHOUT_A_JOB, "", "7", "x y", "1 2 3"]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60).stdout == "[0, 0, 0, 0]\n"
