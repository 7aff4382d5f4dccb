"""Estimates what a study will take: jobs, GPU-hours, CPU-hours, disk, and what its largest job asks for.

    python -m proxycast.plan config/data_selection.yaml --profile slurm

`snakemake -n` tells which jobs remain and what they ask for; with --forceall it tells how many there are in all. How
long each runs and what it leaves on the disk follows from `proxycast.cluster.model_jobs`.
"""

import re
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from proxycast.cluster.cost_model import ASSUMED_VOCABULARY, GB, UTILISATION
from proxycast.cluster.disk import BYTES_PER_SCORED_TOKEN, disk_plan, downloaded_bytes
from proxycast.cluster.gpu_locks import asked_gpus
from proxycast.cluster.model_jobs import ASSUMED_TEXTS, MODEL_RULES, ModelJobs
from proxycast.cluster.site import read_site
from proxycast.options import InputError
from proxycast.study.checkpoint_plan import plan_checkpoints
from proxycast.study.loader import load_plan
from proxycast.study.yaml_files import read_yaml

LINE_WIDTH = 100
MANY_CORES = "1024"  # with fewer Snakemake would cut the threads of a job to them
HOURS_OF_OTHERS = 1 / 60  # a job that runs no model, as long as none of its rule has run


@dataclass(frozen=True)
class RemainingJob:
    """A job that Snakemake would run."""

    rule: str
    name: str = ""  # value of its wildcard
    threads: int = 1
    resources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """The jobs of a rule, or of all."""

    rule: str
    to_do: int
    done: int
    gpu_hours: float = 0
    cpu_hours: float = 0
    kept_gb: float = 0
    at_a_time_gb: float = 0
    # The most that one job asks for.
    gpus: int = 0
    memory_gb: float = 0
    hours: float = 0


def remaining_jobs(output: str) -> list[RemainingJob]:
    """The jobs in what `snakemake -n` prints."""
    found = []
    for rule, block in re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)*)", output, re.MULTILINE):
        values = dict(re.findall(r"^    (wildcards|threads|resources): (.*)$", block, re.MULTILINE))
        resources = dict(pair.split("=", 1) for pair in values.get("resources", "").split(", ") if "=" in pair)
        name = values.get("wildcards", "").partition("=")[2]
        found.append(RemainingJob(rule, name, int(values.get("threads", 1)), resources))
    return found


def job_stats(output: str) -> Counter[str]:
    """Rule -> number of jobs, from the table that `snakemake -n` prints; empty if there is nothing to do."""
    table = re.search(r"^Job stats:\njob +count\n[- ]+\n((?:\w+ +\d+\n)+)", output, re.MULTILINE)
    counts = Counter({rule: int(count) for rule, count in re.findall(r"(\w+) +(\d+)", table[1] if table else "")})
    del counts["total"]
    return counts


def phases(model_jobs: ModelJobs, remaining: Sequence[RemainingJob], every: Counter[str]) -> list[Estimate]:
    """One row a rule, in Snakemake's order, and one for all."""
    by_rule: dict[str, list[RemainingJob]] = {rule: [] for rule in every}
    for job in remaining:
        by_rule.setdefault(job.rule, []).append(job)
    found = []
    for rule, jobs in by_rule.items():
        hours = [hours_of(model_jobs, job) for job in jobs]
        found.append(
            Estimate(
                rule,
                len(jobs),
                max(0, every[rule] - len(jobs)),
                sum(asked_gpus(job.resources) * hour for job, hour in zip(jobs, hours)),
                sum(job.threads * hour for job, hour in zip(jobs, hours)),
                *disk_of(model_jobs, rule, jobs),
                *map(max, zip((0, 0, 0), *map(asked_for, jobs))),
            )
        )
    numbers = ("to_do", "done", "gpu_hours", "cpu_hours", "kept_gb", "at_a_time_gb")
    largest = {key: max(getattr(phase, key) for phase in found) for key in ("gpus", "memory_gb", "hours")}
    return [
        *found,
        Estimate("in all", **{key: sum(getattr(phase, key) for phase in found) for key in numbers}, **largest),
    ]


def hours_of(model_jobs: ModelJobs, job: RemainingJob) -> float:
    """The formulas' estimate, or for other rules the median of finished jobs."""
    if job.rule in MODEL_RULES:
        return model_jobs.hours(job.rule, job.name)
    return model_jobs.hours_of_others(job.rule) or HOURS_OF_OTHERS


def asked_for(job: RemainingJob) -> tuple[int, float, float]:
    """GPUs, GB of memory and hours that a job asks for; 0 for what it does not say, or not yet."""
    megabytes, minutes = (job.resources.get(name, "") for name in ("mem_mb", "runtime"))
    return (
        asked_gpus(job.resources),
        int(megabytes) / 1000 if megabytes.isdigit() else 0,
        int(minutes) / 60 if minutes.isdigit() else 0,
    )


def disk_of(model_jobs: ModelJobs, rule: str, jobs: Sequence[RemainingJob]) -> tuple[float, float]:
    """GB that the jobs of a rule leave, and GB that they need at a time and give back."""
    if rule == "score":
        return sum(model_jobs.scored_tokens(job.name) for job in jobs) * BYTES_PER_SCORED_TOKEN / GB, 0
    if rule in ("train_run", "train_corpus", "post_train"):
        return sum(model_jobs.trained_bytes(job.name) for job in jobs) / GB, 0
    if rule == "download_run" and jobs:
        total, _, at_a_time = downloaded_bytes(model_jobs.plan, model_jobs.checkpoints)
        return (total / GB, 0) if model_jobs.plan.study.hub.keep else (0, at_a_time / GB)
    return 0, 0


def table(rows: Sequence[Estimate]) -> list[str]:
    """The rows as lines of equal width."""
    lines = [
        f"{'':58}{'GB':>9}{'GB at':>9}{'the most of a job':>19}",
        f"{'':24}{'to do':>7}{'done':>7}{'GPU-hours':>10}{'CPU-hours':>10}{'kept':>9}{'a time':>9}"
        f"{'GPUs':>6}{'GB':>6}{'hours':>7}",
    ]
    for row in rows:
        hours = f"{row.gpu_hours:>10,.1f}{row.cpu_hours:>10,.1f}"
        disk = f"{row.kept_gb:>9,.1f}{row.at_a_time_gb:>9,.1f}"
        largest = f"{row.gpus:>6}{row.memory_gb:>6,.0f}{row.hours:>7,.1f}"
        lines.append(f"{row.rule:24}{row.to_do:>7,}{row.done:>7,}{hours}{disk}{largest}")
    return [*lines[:-1], "-" * len(lines[0]), lines[-1]]


def assumptions(model_jobs: ModelJobs) -> list[str]:
    """What the numbers assume."""
    plan, site = model_jobs.plan, model_jobs.site
    lines = []
    if not plan.runs_models:
        return ["No model is run; a job whose rule has not run yet counts a minute."]
    unknown = [name for name, texts in model_jobs.texts.items() if not texts.known]
    if unknown:
        tail = plan.study.extraction.tail_tokens
        lines.append(
            f"{len(unknown)} of {len(model_jobs.texts)} solutions files are not there yet: each solution counts as "
            f"{tail} tokens (tail_tokens, the most that are scored), a task as its `sample` or {ASSUMED_TEXTS} of them."
        )
    if site.gpu_request:
        lines.append(
            f"GPUs of {site.gpu_memory_gb:g} GB, {UTILISATION:.0%} of {site.gpu_teraflops:g} TFLOPS in bfloat16, a "
            "sixteenth of it in float32; 2 N FLOPs a token."
        )
    else:
        lines.append("No GPU is asked for; --profile slurm says which there are (config.site).")
    lines.append(
        f"A model that is not there yet has {ASSUMED_VOCABULARY:,} tokens and a usual shape; a job that runs none "
        "counts a minute until one of its rule has run."
    )
    if site.gpu_request:
        lines.append("Downloads and copies run where Snakemake does; every other job goes to the cluster.")
    for rule in MODEL_RULES:
        memory, time = model_jobs.factors(rule)
        if (memory, time) != (1, 1):
            lines.append(f"{rule}: corrected by earlier jobs, memory asked for x {memory:.2f}, time x {time:.2f}.")
    return [*lines, *disk_plan(plan, model_jobs.checkpoints)]


def dry_run(study: Path, profile: str | None, *arguments: str) -> str:
    """What `snakemake -n` prints; `InputError` with its error if it cannot plan."""
    command = [sys.executable, "-m", "snakemake", "-n", "--nocolor", "--cores", MANY_CORES, "--configfile", str(study)]
    command += ["--profile", profile] if profile else []
    finished = subprocess.run([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if finished.returncode:
        raise InputError(finished.stdout.strip())
    return finished.stdout


def site_of(profile: str | None) -> object:
    """The site block of a profile in this folder."""
    if profile is None:
        return None
    found = read_yaml(Path(profile) / "config.yaml")
    return (found.get("config") or {}).get("site")


def print_estimate(study: Path, profile: str | None) -> None:
    plan = load_plan(read_yaml(study), str(study))
    model_jobs = ModelJobs(plan, plan_checkpoints(plan), read_site(site_of(profile)))
    with ThreadPoolExecutor() as pool:
        every = pool.submit(dry_run, study, profile, "--forceall", "--quiet", "rules")
        remaining = remaining_jobs(dry_run(study, profile))
    rows = phases(model_jobs, remaining, job_stats(every.result()))
    print(f"{plan.study.study}: {rows[-1].to_do:,} jobs to do, {rows[-1].done:,} done", *table(rows), "", sep="\n")
    print(*(textwrap.fill(line, LINE_WIDTH) for line in assumptions(model_jobs)), sep="\n")
