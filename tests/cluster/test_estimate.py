"""What a study is said to take: against what Snakemake itself plans of studies that are shipped, and sums by hand."""

import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import copy_project
from proxycast.cluster.estimate import RemainingJob, dry_run, job_stats, phases, remaining_jobs, table
from proxycast.cluster.model_jobs import ModelJobs
from proxycast.cluster.site import Site
from proxycast.options import InputError
from proxycast.study.checkpoint_plan import plan_checkpoints
from proxycast.study.loader import load_plan
from proxycast.study.yaml_files import read_yaml

ROOT = Path(__file__).parents[2]
OUTPUT = """\
Job stats:
job        count
-------  -------
score          2
all            1
total          3


[Sun Nov 22 21:26:20 2026]
rule score:
    input: results/mine/solutions/a.jsonl
    output: results/mine/token_stats/b-1/manifest.json
    jobid: 3
    reason: Missing output files: rule all:
    wildcards: job=b-1
    priority: 2
    threads: 4
    resources: tmpdir=/tmp, mem_mb=4000, mem=4 GB, slurm_partition=gpu, gres=gpu:h100:2
[Sun Nov 22 21:26:20 2026]
rule score:
    wildcards: job=b-2
    resources: tmpdir=/tmp, gpu=1
[Sun Nov 22 21:26:20 2026]
localrule all:
    jobid: 0
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_project(tmp_path_factory.mktemp("project"))


def data_selection(monkeypatch, project, site=None) -> ModelJobs:
    monkeypatch.chdir(project)
    study = Path("config/data_selection.yaml")
    plan = load_plan(read_yaml(study), str(study))
    return ModelJobs(plan, plan_checkpoints(plan), site)


def test_jobs_are_read_from_what_snakemake_prints():
    one, two, last = remaining_jobs(OUTPUT)
    assert (one.rule, one.name, one.threads, one.resources["gres"]) == ("score", "b-1", 4, "gpu:h100:2")
    assert (two.name, two.threads, two.resources["gpu"]) == ("b-2", 1, "1")
    assert last == RemainingJob("all")
    assert job_stats(OUTPUT) == {"score": 2, "all": 1}
    assert not job_stats("Nothing to be done (all requested files are present and up to date).\n")


def test_the_plan_is_snakemakes_own(project, monkeypatch):
    """Rule by rule the jobs that are read one by one are those of the table that Snakemake counts."""
    monkeypatch.chdir(project)
    studies = ["forecasting", "model_selection"]
    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(lambda study: dry_run(Path(f"config/{study}.yaml"), "slurm"), studies))
    for output in outputs:
        remaining = remaining_jobs(output)
        assert len(remaining) > 1 and Counter(job.rule for job in remaining) == job_stats(output)
    gpus = {job.name: job.resources["gres"] for job in remaining_jobs(outputs[1]) if job.rule == "score"}
    files = [read_yaml(path) for path in Path("config/models/open_reasoning").glob("*.yaml")]
    own = {file["name"]: file.get("model", {}).get("tensor_parallel_size", 1) for file in files}
    # Those of which the files say nothing fit into one GPU of 80 GB.
    assert Counter(gpus.values()) == Counter(f"gpu:{number}" for number in own.values()) and len(own) == 18


def test_the_command_prints_a_table(project):
    command = [sys.executable, "-m", "proxycast.plan", "config/smoke.yaml", "--profile", "slurm"]
    finished = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    # 5 corpora are trained, scored and made proxies of; 4 texts; pool, 3 joins, checkpoints, all; selection,
    # signal, choices, solution counts, the figures of these four, mixtures, tokens, the page.
    assert lines[0] == "smoke: 32 jobs to do, 0 done"
    assert max(map(len, lines)) <= 100
    assert [line.split()[1] for line in lines if line.startswith(("score", "train_corpus", "copy_"))] == ["4", "5", "5"]
    assert re.search(r"^in all +32 +0 +0\.1 ", finished.stdout, re.MULTILINE)
    assert "GPUs of 80 GB, 30% of 300 TFLOPS" in finished.stdout
    score = next(line.split() for line in lines if line.startswith("score"))
    assert score[-3] == "1" and float(score[-1]) == 0.5  # the least that is asked for


def test_what_snakemake_cannot_plan_is_an_error(project, monkeypatch):
    monkeypatch.chdir(project)
    with pytest.raises(InputError, match="no-such-study.yaml"):
        dry_run(Path("config/no-such-study.yaml"), None)


def test_hours_and_disk_are_sums_over_the_jobs_that_remain(monkeypatch, project):
    jobs = data_selection(monkeypatch, project, Site(gpu_request="gpus", gpu_memory_gb=80))
    names = [name for name, found in jobs.jobs.items() if found[0].size == "90M"][:2]
    asked = {"gpu": "1", "mem_mb": "4500", "runtime": "90"}, {"gpu": "1", "mem_mb": "3000", "runtime": "<TBD>"}
    scores = [RemainingJob("score", name, 4, resources) for name, resources in zip(names, asked)]
    rows = phases(jobs, [*scores, RemainingJob("join_proxies")], Counter(score=3, join_proxies=1, checkpoints=1))
    score, join, checkpoints, total = rows
    hours = sum(jobs.needs("score", name).seconds for name in names) / 3600
    assert (score.to_do, score.done, checkpoints.to_do, checkpoints.done) == (2, 1, 0, 1)
    assert (score.gpu_hours, score.cpu_hours) == (pytest.approx(hours), pytest.approx(4 * hours))
    assert (join.gpu_hours, join.cpu_hours) == (0, pytest.approx(1 / 60))
    # Every text of 11 files is 1000 tokens, or as many as `sample` says; 30 bytes each.
    read = sum(len(jobs.jobs[name]) for name in names) * jobs.tokens_read
    assert score.kept_gb == pytest.approx(30 * read / 1e9)
    assert (total.to_do, total.done, total.gpu_hours) == (3, 2, score.gpu_hours)
    assert total.cpu_hours == pytest.approx(score.cpu_hours + 1 / 60)
    assert (score.gpus, score.memory_gb, score.hours) == (total.gpus, total.memory_gb, total.hours) == (1, 4.5, 1.5)
    assert (join.gpus, join.memory_gb, join.hours) == (0, 0, 0)
    lines = table(rows)
    assert len({len(line) for line in lines}) == 1


def test_weights_are_on_the_disk_for_a_time_or_kept(monkeypatch, project):
    jobs = data_selection(monkeypatch, project)
    downloads = [RemainingJob("download_run", run) for run in jobs.runs]
    row, _ = phases(jobs, downloads, Counter(download_run=len(downloads)))
    scored = [found for found in jobs.runs.values() if found[0].role != "target"]
    bytes_of = [sum(4 * (c.parameters + 50_304 * jobs.model(c).hidden_size) for c in found) for found in scored]
    assert (row.kept_gb, row.at_a_time_gb) == (0, pytest.approx(sum(sorted(bytes_of)[-4:]) / 1e9))


def test_jobs_without_models_take_as_long_as_those_that_ran(monkeypatch, project):
    jobs = data_selection(monkeypatch, project)
    folder = jobs.plan.results / "benchmarks/solution_proxies"
    folder.mkdir(parents=True)
    for name, seconds in (("a", 10), ("b", 3600), ("c", 7200)):
        (folder / f"{name}.tsv").write_text(f"s\tmax_rss\n{seconds}\t100\n")
    row, _ = phases(jobs, [RemainingJob("solution_proxies", "x")], Counter(solution_proxies=4))
    assert (row.cpu_hours, row.done) == (pytest.approx(1), 3)
