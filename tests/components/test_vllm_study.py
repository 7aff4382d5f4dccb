"""The smoke study through vLLM, as a user runs it: the same proxies and the same ranking as through transformers."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked_python
import polars as pl
import psutil
import pytest
from conftest import copy_project, write_json
from polars.testing import assert_frame_equal
from proxycast.jobs import attempts

pytestmark = pytest.mark.vllm
KEY = ["checkpoint", "task", "statistic", "weighting"]


def run(project: Path, *arguments: str, study: str = "smoke", **environment: str) -> str:
    command = ["snakemake", "--configfile", f"config/{study}.yaml", "--cores", "2", *arguments]
    finished = forked_python.run(*command, cwd=project, merged=True, env=os.environ | environment, forked_jobs="vllm")
    assert finished.returncode == 0, finished.stdout[-5000:]
    return finished.stdout


def read(project: Path) -> dict[str, pl.DataFrame]:
    results = project / "results/smoke"
    tables = {name: pl.read_parquet(results / f"{name}.parquet") for name in ("proxies", "targets")}
    tables["ranking"] = pl.read_parquet(results / "data_selection/ranking.parquet")
    tables["token_stats"] = pl.concat(pl.read_parquet(p) for p in sorted((results / "token_stats").rglob("*.parquet")))
    return tables


def assert_same_tokens(*tables: pl.DataFrame) -> None:
    names = ["logprob", "max_logprob", "second_logprob", "entropy"]
    assert_frame_equal(*[table.select(names) for table in tables], check_exact=False, abs_tol=1e-4, rel_tol=0)
    keys = ["checkpoint", "task", "solution", "position", "token", "bytes", "vocabulary"]
    assert_frame_equal(*[table.select(keys) for table in tables])
    assert (tables[0]["n_greater"] - tables[1]["n_greater"]).abs().max() <= 1


def test_the_engine_changes_no_ranking(smoke, tmp_path):
    project = shutil.copytree(smoke, tmp_path / "project", symlinks=True)
    by_transformers = read(project)
    output = run(project, "--config", "extraction={engine: vllm}", VLLM_ENABLE_V1_MULTIPROCESSING="0")
    assert output.count("rule score:") == 5 and "rule train_corpus:" not in output
    for log in (project / "results/smoke/logs/score").glob("*.log"):
        assert "vLLM's model runner v1" in log.read_text()
    by_vllm = read(project)

    assert_same_tokens(*[table["token_stats"] for table in (by_transformers, by_vllm)])
    proxies = [table["proxies"].sort(KEY) for table in (by_transformers, by_vllm)]
    assert_frame_equal(*[table.select(KEY) for table in proxies])
    # 1e-4 of the value: the weights 1 / f(y) make some proxies hundreds in size.
    assert_frame_equal(*[t.select("value") for t in proxies], check_exact=False, abs_tol=1e-4, rel_tol=1e-4)
    targets = [table["targets"].sort("checkpoint", "task", "metric") for table in (by_transformers, by_vllm)]
    assert_frame_equal(*targets, check_exact=False, abs_tol=1e-4)
    columns = ["corpus", "statistic", "weighting", "size", "step", "predicted_rank", "true_rank"]
    rankings = [table["ranking"].select(columns).sort(columns[:5]) for table in (by_transformers, by_vllm)]
    assert_frame_equal(*rankings)


def test_the_engine_in_a_process_of_its_own(smoke, tmp_path):
    """As on a GPU: the job's script is imported by it again. Such a start takes ten times as long as one in the job.

    Of three checkpoints the first two have an engine each, and the third is loaded into the second one.
    """
    project = copy_project(tmp_path)
    for corpus in ("base", "core"):  # the second is not scored; a study needs two
        checkpoints = []
        for seed, step in ((0, 20), (0, 40), (1, 20)):
            folder = smoke / f"results/smoke/suite/models/{corpus}-30k-seed{seed}/step{step}"
            place = {"folder": str(folder), "size": "30k", "seed": seed, "step": step}
            checkpoints.append(place | {"tokens": 1024 * step})
        write_json({"name": corpus, "checkpoints": checkpoints}, project / f"config/corpora/own/{corpus}.yaml")
    for task in ("days_after", "homes", "products"):
        solutions = str(smoke / f"results/smoke/solutions/{task}.jsonl")
        write_json({"name": task, "solutions": solutions}, project / f"config/tasks/own/{task}.yaml")
    study = {"study": "own", "corpora": {"own": "all"}, "tasks": {"own": "all"}, "jobs": "corpus"}
    write_json(study | {"extraction": {"engine": "vllm"}}, project / "config/own.yaml")
    manifest = "results/own/token_stats/base/manifest.json"
    run(project, manifest, study="own", VLLM_ENABLE_V1_MULTIPROCESSING="1")
    log = (project / "results/own/logs/score/base.log").read_text()
    assert log.count("vLLM's model runner v1") == 2
    ours, tables = sorted((project / manifest).parent.glob("*.parquet")), []
    for folder in (smoke / "results/smoke/token_stats/base", project / "results/own/token_stats/base"):
        parts = [pl.read_parquet(folder / path.name) for path in ours]
        tables.append(pl.concat(parts).filter(pl.col("task") != "generic_text"))
    assert tables[1]["checkpoint"].n_unique() == 3
    assert_same_tokens(*tables)


def test_what_vllm_has_started_ends_with_a_job_that_is_killed(tmp_path, model_folder):
    """Its processes would keep a GPU's memory. While they live they hold the lock on the job's log, by its stderr."""
    model_folder()
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from proxycast.config.extraction import ExtractionOptions\n"
        "from proxycast.extraction.engines.factory import make_engine\n"
        "from proxycast.jobs import job\n"
        "if __name__ == '__main__':\n"
        "    with job('job.log'):\n"
        "        make_engine(ExtractionOptions(engine='vllm')).load(Path('model'))\n"
        "        print('loaded', file=sys.stderr, flush=True)\n"
        "        time.sleep(600)\n"
    )
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    process = subprocess.Popen([sys.executable, str(script)], cwd=tmp_path, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "job.log").exists() or "loaded" not in (tmp_path / "job.log").read_text():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
        assert any("EngineCore" in " ".join(child.cmdline()) for child in children)
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
        assert [attempt.state for attempt in attempts(tmp_path / "job.log")] == ["killed"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
