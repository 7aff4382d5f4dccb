"""A job's script run by hand, in a copy of the finished smoke study: what it makes, and what it says without input."""

import shutil
import subprocess
from pathlib import Path

import forked_python
import polars as pl
import pytest
from polars.testing import assert_frame_equal

PROXIES = Path("results/smoke/proxies.parquet")


@pytest.fixture(scope="module")
def project(smoke, tmp_path_factory):
    """A copy of the finished smoke study, with its times."""
    return shutil.copytree(smoke, tmp_path_factory.mktemp("by_hand") / "project")


def by_hand(project: Path, file: Path) -> subprocess.CompletedProcess:
    arguments = ["--configfile", "config/smoke.yaml", str(file)]
    return forked_python.run("proxycast.study.by_hand", *arguments, cwd=project)


def test_a_table_made_by_hand_is_the_one_that_snakemake_makes(project, smoke):
    (project / PROXIES).unlink()
    run = by_hand(project, PROXIES)
    said = "rule join_proxies runs workflow/scripts/join_proxies.py and logs to results/smoke/logs/join_proxies.log\n"
    assert (run.returncode, run.stdout, run.stderr) == (0, said, "")
    assert_frame_equal(*(pl.read_parquet(folder / PROXIES) for folder in (project, smoke)))


def test_a_job_finds_its_wildcards_parameters_and_log(project, smoke):
    """A script that reads most of `snakemake`: parameters, named inputs and outputs, configuration."""
    of_corpus = Path("results/smoke/proxies/base.parquet")
    log = project / "results/smoke/logs/solution_proxies/base.log"
    attempts = log.read_text().count("=== done")
    (project / of_corpus).unlink()
    assert by_hand(project, of_corpus).returncode == 0
    by = ["checkpoint", "task", "statistic", "weighting", "tail"]
    assert_frame_equal(*(pl.read_parquet(folder / of_corpus).sort(by) for folder in (project, smoke)))
    assert log.read_text().count("=== done") == attempts + 1


def test_what_cannot_be_run_is_one_message(project):
    (project / "results/smoke/proxies/core.parquet").unlink()
    run = by_hand(project, PROXIES)
    lacks = "rule join_proxies lacks its input. Make first:\nresults/smoke/proxies/core.parquet\n"
    assert (run.returncode, run.stderr) == (1, f"error: {PROXIES}: {lacks}")
    run = by_hand(project, Path("results/smoke/none.parquet"))
    assert run.returncode == 1 and "No rule to produce results/smoke/none.parquet" in run.stderr
