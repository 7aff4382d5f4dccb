"""What the tests of Slurm share: a project on the local cluster (slurm-local.sh), and a study that is to be disturbed.

The study scores two runs of six checkpoints; nothing is trained, and a table is the truth. On the cluster each
checkpoint waits for a second before it is there, so that a fault hits a job in the middle of its run. A wait takes no
processor.
"""

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import polars as pl
import torch
from conftest import CONTEXT, SLURM_CONF, byte_level_tokenizer, write_json, write_rows
from proxycast.jobs import Attempt, attempts
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[2]
CLUSTER = Path(__file__).with_name("slurm-local.sh")

STUDY = "config/disturbed.yaml"
RESULTS = Path("results/disturbed")
PROXIES = RESULTS / "proxies.parquet"
JOBS = ("left-small-seed0", "right-small-seed0")
STEPS = tuple(range(10, 70, 10))
CHECKPOINTS = {f"{job}-step{step}" for job in JOBS for step in STEPS}
UNFINISHED = "PENDING,RUNNING,COMPLETING"
# Rules behind the ranking of corpora: the faults are about what comes before.
FIGURES = ("data_selection_figures", "signal_to_noise", "solution_counts", "choices", "token_view", "study_page")
EAGER = {"TORCHDYNAMO_DISABLE": "1"}  # to compile takes a job longer than to score so little
SLOWLY = """
import os
import time

replace = os.replace


def slowly(source, target, **options):
    if "token_stats" in str(target) and str(target).endswith(".parquet"):
        time.sleep(1)
    replace(source, target, **options)


os.replace = slowly
"""
WRITTEN = re.compile(r"token_stats of (\S+) written")


class Part(NamedTuple):
    """A file as it was written: another one of the same name has another inode or time."""

    inode: int
    written: int  # nanoseconds


class SlurmJob(NamedTuple):
    number: str
    node: str
    what: str  # rule and wildcards


def cluster(action: str, **environment: str) -> None:
    """`slurm-local.sh up` starts again whatever a test has killed or drained."""
    subprocess.run([CLUSTER, action], check=True, env=os.environ | environment)


@contextmanager
def locked(path: Path, kind: int = fcntl.LOCK_EX):
    """A lock on a file or folder that is there, between the workers of pytest."""
    file = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(file, kind)
        yield
    finally:
        os.close(file)


@contextmanager
def shared_cluster():
    """Tests that disturb nothing but their own jobs run side by side, on the cluster that was there before them."""
    with locked(CLUSTER, fcntl.LOCK_SH):
        yield


@contextmanager
def cluster_to_break(**environment: str):
    """No other test runs; the cluster is whole before and after."""
    with locked(CLUSTER):
        cluster("up", **environment)
        try:
            yield
        finally:
            cluster("up")


def daemon(name: str) -> int:
    """Process id of one of the cluster's daemons: slurmctld, slurmd-n1, ..."""
    pid_file = re.search(r"^SlurmctldPidFile=(\S+)$", SLURM_CONF.read_text(), re.MULTILINE)[1]
    return int(Path(pid_file).with_name(f"{name}.pid").read_text())


def slurm(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, timeout=60).stdout


def wait_for(condition: Callable[[], object], what: str, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} after {seconds:.0f} s"
        time.sleep(0.25)  # most of them start a process


def write_study(project: Path) -> None:
    """The study, and what it is over: models of random weights, two tasks, a table of the truth."""
    tokenizer = byte_level_tokenizer()
    shape = dict(hidden_size=192, num_hidden_layers=4, num_attention_heads=3, intermediate_size=512)
    shape |= dict(vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, initializer_range=0.1)
    for number, corpus in enumerate(("left", "right")):
        checkpoints = []
        for step in STEPS:
            torch.manual_seed(1000 * number + step)
            folder = f"models/{corpus}/step{step}"
            LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(project / folder)
            tokenizer.save_pretrained(project / folder)
            checkpoints.append({"folder": folder, "size": "small", "step": step, "tokens": 1000 * step, "seed": 0})
        write_json({"name": corpus, "checkpoints": checkpoints}, project / f"config/corpora/given/{corpus}.yaml")
    for task in ("sums", "times"):
        texts = [f" {n} {task} three: " + "the cat sat on the mat; " * 8 for n in range(25)]
        rows = [{"id": f"{task}-{n}", "prompt": f"Q: {n}?\nA:", "solution": text} for n, text in enumerate(texts)]
        write_rows(rows, project / f"own/{task}.jsonl")
        write_json({"name": task, "solutions": f"own/{task}.jsonl"}, project / f"config/tasks/given/{task}.yaml")
    text = "The cat sat on the mat, and the dog lay at the door."
    write_rows([{"id": "generic", "prompt": "", "solution": text}], project / "own/generic.jsonl")
    truth = [
        {"checkpoint": f"{corpus}-large-seed0-step99", "task": task, "metric": "score", "value": value, "n": 8}
        for corpus, value in (("left", 0.1), ("right", 0.3))
        for task in ("sums", "times")
    ]
    pl.DataFrame(truth).write_csv(project / "own/truth.csv")
    study = {
        "study": "disturbed",
        "corpora": {"given": "all"},
        "tasks": {"given": "all"},
        "generic_text": "own/generic.jsonl",
        "target": {"size": "large", "metric": "score", "table": "own/truth.csv", "parameters": 10**6, "tokens": 10**6},
        "jobs": "run",
        "highlighted": [{"statistic": "cross_entropy"}],
        "budgets": [{"name": "only", "size": "small", "step": STEPS[-1]}],
    }
    write_json(study, project / STUDY)


def environment_of_jobs(project: Path) -> dict[str, str]:
    """With it each checkpoint is scored slowly, in all jobs of a project."""
    (project / "slowly").mkdir()
    (project / "slowly/sitecustomize.py").write_text(SLOWLY)
    paths = [str(project / "slowly"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return EAGER | {"PYTHONPATH": ":".join(paths)}


class Snakemake:
    """`snakemake --profile slurm` on the study of `project`, in a process group of its own; what it says in a file."""

    def __init__(self, project: Path, *arguments: str, target: str = str(PROXIES)):
        command = [sys.executable, "-m", "snakemake", target, "--profile", "slurm", "--configfile", STUDY]
        # The nodes have more cores than the machine.
        command += ["--slurm-init-seconds-before-status-checks", "1", "--set-threads", "score=1"]
        number = len(list(project.glob("snakemake*.log")))
        self.project, self.log = project, project / f"snakemake{number}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *arguments], cwd=project, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def finish(self, seconds: float = 300.0) -> int:
        """Its exit status."""
        return self.process.wait(seconds)

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """As long as it runs."""

        def holds() -> bool:
            found = condition()
            assert found or self.process.poll() is None, f"no {what}, but an end: {self.said[-3000:]}"
            return found

        wait_for(holds, what)

    def wait_for_checkpoints(self, number: int, job: str = JOBS[0]) -> dict[str, Part]:
        """`parts`, once that many checkpoints of a job are scored: the job is in the midst of the next one."""
        self.wait_for(lambda: sum(name.startswith(job) for name in parts(self.project)) >= number, "scored checkpoints")
        return parts(self.project)

    def kill(self) -> None:
        """As the death of the machine that it runs on does."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def snakemake(project: Path, *arguments: str, target: str = str(PROXIES)):
    """A running `Snakemake`; neither it nor its jobs outlive the block."""
    run = Snakemake(project, *arguments, target=target)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.kill()
        if jobs := slurm_jobs(project, UNFINISHED):
            slurm("scancel", *(job.number for job in jobs))
            wait_for(lambda: not slurm_jobs(project, UNFINISHED), "end of the jobs")


def slurm_jobs(project: Path, states: str = "RUNNING") -> list[SlurmJob]:
    """The jobs of this project that are in these states, which Slurm remembers for half an hour."""
    found = slurm("squeue", "--noheader", "--states", states, "--format", "%i|%N|%Z|%k").splitlines()
    rows = [line.split("|", maxsplit=3) for line in found]
    return [SlurmJob(number, node, what) for number, node, folder, what in rows if Path(folder) == project]


def score_job(project: Path, job: str = JOBS[0]) -> SlurmJob | None:
    """The Slurm job that scores the checkpoints of `job` just now."""
    found = [running for running in slurm_jobs(project) if "rule_score" in running.what and job in running.what]
    return found[0] if found else None


def log_of(project: Path, job: str = JOBS[0]) -> Path:
    return project / RESULTS / f"logs/score/{job}.log"


def parts(project: Path) -> dict[str, Part]:
    """Checkpoint -> its file of token statistics, of those that are there."""
    found = {}
    for path in (project / RESULTS / "token_stats").glob("*/*.parquet"):
        if not path.name.startswith("."):
            state = path.stat()
            found[path.stem] = Part(state.st_ino, state.st_mtime_ns)
    return found


def times_written(project: Path) -> Counter[str]:
    """Checkpoint -> how often it was scored, by what all attempts of all jobs said."""
    said = [line for job in JOBS for attempt in attempts(log_of(project, job)) for line in attempt.lines]
    return Counter(name for line in said for name in WRITTEN.findall(line))


def last_attempt(project: Path, job: str = JOBS[0]) -> Attempt:
    return attempts(log_of(project, job))[-1]
