"""The smoke study by `snakemake --profile slurm`, on a real Slurm.

What a user would type is what runs here. The results are those of a plain run on one machine.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest
from conftest import copy_project
from polars.testing import assert_frame_equal
from slurm_study import shared_cluster, slurm, slurm_jobs
from test_secrets import SECRETS, holders

pytestmark = pytest.mark.slurm

SMOKE = "config/smoke.yaml"
RESULTS = Path("results/smoke")
# One waits for the other; of join_proxies and join_targets, which do not, one counts.
LEVELS = ["build_suite", "train_corpus", "score", "solution_proxies", "join_proxies", "data_selection"]
LEVELS += ["data_selection_figures"]
# Made from sums of many values, which Polars adds up in the order in which its threads come.
SUMS = ("proxies", "solution_proxies", "data_selection")


class Run(NamedTuple):
    project: Path
    seconds: float


def run(project: Path, *arguments: str, **environment: str) -> Run:
    """`snakemake <arguments>`, from the environment that the tests run in."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    started = time.monotonic()
    subprocess.run(["snakemake", *arguments], cwd=project, env=os.environ | {"PATH": path} | environment, check=True)
    return Run(project, time.monotonic() - started)


@pytest.fixture(scope="module")
def on_one_machine(tmp_path_factory):
    project = copy_project(tmp_path_factory.mktemp("local"))
    return run(project, "--configfile", SMOKE, "--cores", "2")


@pytest.fixture(scope="module")
def on_slurm(tmp_path_factory):
    project = copy_project(tmp_path_factory.mktemp("slurm"))
    with shared_cluster():
        yield run(project, "--profile", "slurm", "--configfile", SMOKE, **SECRETS)


def files(project: Path, *suffixes: str) -> list[Path]:
    """Results with one of these suffixes, relative to the project."""
    found = (path.relative_to(project) for path in (project / RESULTS).rglob("*") if path.suffix in suffixes)
    return sorted(path for path in found if not path.name.startswith("."))


def test_the_smoke_study_ran_on_slurm(on_slurm):
    jobs = [
        job.what.removeprefix("rule_").partition("_wildcards_")[0] for job in slurm_jobs(on_slurm.project, "COMPLETED")
    ]
    assert set(jobs) == {*LEVELS, "join_targets"}
    assert jobs.count("train_corpus") == jobs.count("score") == jobs.count("solution_proxies") == 5
    assert not slurm_jobs(on_slurm.project, "FAILED,CANCELLED,TIMEOUT,OUT_OF_MEMORY,NODE_FAIL")


def test_no_secret_is_in_a_script_that_slurm_was_given(on_slurm):
    scripts = [
        slurm("scontrol", "write", "batch_script", job.number, "-") for job in slurm_jobs(on_slurm.project, "COMPLETED")
    ]
    assert len(scripts) > 15 and all("snakemake" in script for script in scripts)
    for secret in SECRETS.values():
        assert not any(secret in script for script in scripts)
        assert holders(on_slurm.project, secret) == []


def test_the_results_are_those_of_one_machine(on_slurm, on_one_machine):
    """Byte for byte: what was built, trained, scored and measured. What sums them up: to ten digits."""
    tables = files(on_one_machine.project, ".parquet")
    assert tables == files(on_slurm.project, ".parquet")
    assert {path.parts[2] for path in tables} >= {"suite", "token_stats", "targets", *SUMS[1:]}
    for path in tables:
        found, expected = pl.read_parquet(on_slurm.project / path), pl.read_parquet(on_one_machine.project / path)
        exact = path.relative_to(RESULTS).parts[0].removesuffix(".parquet") not in SUMS
        assert_frame_equal(found, expected, check_exact=exact, rel_tol=1e-10, abs_tol=1e-12)
    same = files(on_one_machine.project, ".jsonl", ".safetensors")
    assert same == files(on_slurm.project, ".jsonl", ".safetensors") and len(same) > 20
    for path in same:
        assert (on_slurm.project / path).read_bytes() == (on_one_machine.project / path).read_bytes(), path


def test_slurm_takes_little_longer_than_one_machine(on_slurm, on_one_machine):
    local, seconds = on_one_machine.seconds, on_slurm.seconds
    print(f"smoke study: {local:.0f} s on one machine, {seconds:.0f} s on Slurm, {seconds / local:.1f} times as long")
    assert seconds < 4 * local + 20 * len(LEVELS)
