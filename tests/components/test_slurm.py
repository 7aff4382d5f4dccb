"""The smoke study by `snakemake --profile slurm`, on a real Slurm.

What a user would type is what runs here. The results are those of a plain run on one machine.
"""

import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from conftest import copy_project
from polars.testing import assert_frame_equal
from slurm_study import shared_cluster, slurm, slurm_jobs
from test_secrets import SECRETS, holders

pytestmark = pytest.mark.slurm

SMOKE = "config/smoke.yaml"
RESULTS = Path("results/smoke")
# Rule -> the rules whose jobs it needs: all of them, or that of the same corpus.
NEEDED = {
    "train_corpus": ["build_suite"],
    "score": ["train_corpus"],
    "solution_proxies": ["score"],
    "join_proxies": ["solution_proxies"],
    "join_targets": ["score"],
    "data_selection": ["join_proxies", "join_targets"],
    "data_selection_figures": ["data_selection", "signal_to_noise", "solution_counts", "choices"],
    "signal_to_noise": ["join_proxies", "join_targets"],
    "solution_counts": ["solution_proxies", "join_targets"],
    "choices": ["data_selection"],
    "mixtures": ["join_proxies", "join_targets"],
    "token_view": ["data_selection"],
    "study_page": ["token_view", "choices", "signal_to_noise", "solution_counts", "mixtures"],
}
# Made from sums of many values, which Polars adds up in the order in which its threads come.
SUMS = ("proxies", "solution_proxies", "data_selection")


@pytest.fixture(scope="module")
def on_slurm(tmp_path_factory):
    """A project in which the smoke study has run."""
    project = copy_project(tmp_path_factory.mktemp("slurm"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["snakemake", "--profile", "slurm", "--configfile", SMOKE]
    with shared_cluster():
        subprocess.run(command, cwd=project, env=os.environ | {"PATH": path} | SECRETS, check=True)
        yield project


def files(project: Path, *suffixes: str) -> list[Path]:
    """Results with one of these suffixes, relative to the project."""
    found = (path.relative_to(project) for path in (project / RESULTS).rglob("*") if path.suffix in suffixes)
    return sorted(path for path in found if not path.name.startswith("."))


def test_the_smoke_study_ran_on_slurm(on_slurm):
    jobs = [job.what.removeprefix("rule_").partition("_wildcards_")[0] for job in slurm_jobs(on_slurm, "COMPLETED")]
    assert set(jobs) == {"build_suite", *NEEDED}
    assert jobs.count("train_corpus") == jobs.count("score") == jobs.count("solution_proxies") == 5
    assert not slurm_jobs(on_slurm, "FAILED,CANCELLED,TIMEOUT,OUT_OF_MEMORY,NODE_FAIL")


def test_no_secret_is_in_a_script_that_slurm_was_given(on_slurm):
    scripts = [slurm("scontrol", "write", "batch_script", job.number, "-") for job in slurm_jobs(on_slurm, "COMPLETED")]
    assert len(scripts) > 15 and all("snakemake" in script for script in scripts)
    for secret in SECRETS.values():
        assert not any(secret in script for script in scripts)
        assert holders(on_slurm, secret) == []


def test_the_results_are_those_of_one_machine(on_slurm, smoke):
    """Byte for byte: what was built, trained, scored and measured. What sums them up: to ten digits."""
    tables = files(smoke, ".parquet")
    assert tables == files(on_slurm, ".parquet")
    assert {path.parts[2] for path in tables} >= {"suite", "token_stats", "targets", *SUMS[1:]}
    for path in tables:
        found, expected = pl.read_parquet(on_slurm / path), pl.read_parquet(smoke / path)
        exact = path.relative_to(RESULTS).parts[0].removesuffix(".parquet") not in SUMS
        assert_frame_equal(found, expected, check_exact=exact, rel_tol=1e-10, abs_tol=1e-12)
    same = files(smoke, ".jsonl", ".safetensors")
    assert same == files(on_slurm, ".jsonl", ".safetensors") and len(same) > 20
    for path in same:
        assert (on_slurm / path).read_bytes() == (smoke / path).read_bytes(), path


def test_a_job_is_submitted_soon_after_those_that_it_needs(on_slurm):
    """What Slurm adds to a study, but for its queue: an end is seen late, and a job is handed over late.

    Times of Slurm's own, in whole seconds: how fast the jobs are on a busy machine does not count.
    """
    times = slurm("squeue", "--noheader", "--states", "COMPLETED", "--format", "%i|%V|%e").splitlines()
    submitted, ended = {}, {}
    for number, begin, end in (line.split("|") for line in times):
        submitted[number], ended[number] = datetime.fromisoformat(begin), datetime.fromisoformat(end)
    jobs: dict[str, dict[str, str]] = {}  # rule -> wildcards -> number
    for job in slurm_jobs(on_slurm, "COMPLETED"):
        rule, _, wildcards = job.what.removeprefix("rule_").partition("_wildcards_")
        jobs.setdefault(rule, {})[wildcards] = job.number
    waits = {}
    for rule, needed in NEEDED.items():
        for wildcards, number in jobs[rule].items():
            before = [jobs[name].get(wildcards) or max(jobs[name].values(), key=ended.get) for name in needed]
            last = max(map(ended.get, before))
            waits[rule] = max(waits.get(rule, timedelta()), submitted[number] - last)
    print({rule: f"{wait.total_seconds():.0f} s" for rule, wait in waits.items()})
    assert sum(waits.values(), timedelta()) < timedelta(seconds=20 * len(waits))
