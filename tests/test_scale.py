"""What keeps 31,000 checkpoints bearable: jobs that plan only themselves, tables in pieces, replayed statistics."""

import importlib.util
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from proxycast.experiments.data_selection.corpus_scores import predictions, predictions_by_size
from proxycast.extraction.engines.replay import replay
from proxycast.extraction.sweep import EXTRACTED_SCHEMA
from proxycast.options import InputError
from proxycast.proxy_formulas import BASELINES, STATISTICS, WEIGHTINGS
from proxycast.solutions.rows import GENERIC_TEXT
from proxycast.study.checkpoint_plan import checkpoints_of_command, plan_checkpoints
from proxycast.study.checkpoints import checkpoints_table, scoring_jobs
from proxycast.study.loader import load_plan
from proxycast.study.yaml_files import read_yaml
from proxycast.tables import of_size, table_fingerprint, write_table
from snakemake.iocontainers import Namedlist

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def scale():
    spec = importlib.util.spec_from_file_location("scale", ROOT / "tests/benchmarks/scale.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def project(scale, tmp_path_factory):
    """Two corpora, of one size: six scoring jobs that replay."""
    project = tmp_path_factory.mktemp("scale") / "project"
    scale.write_project(project, 2, ["4M"])
    return project


@pytest.fixture
def plan(monkeypatch):
    monkeypatch.chdir(ROOT)
    study = read_yaml(Path("config/datadecide_full.yaml"))
    study["corpora"] = {"datadecide": ["dolma1_7", "dolma1_7-no-code", "c4"]}
    study["ladder"]["sizes"] = ["4M", "1B"]
    study["budgets"] = study["budgets"][:1]
    return load_plan(study, where="the study")


# A job plans what it needs, as the main process planned it


def test_a_job_of_a_run_plans_that_run(plan):
    everything = scoring_jobs(plan, plan_checkpoints(plan))
    for job in ("c4-4M-seed0", "dolma1_7-no-code-1B-seed2", "dolma1_7-4M-seed1"):
        found = checkpoints_of_command(plan, ["--target-jobs", f"score:job={job}", "--allowed-rules", "score"])
        assert scoring_jobs(plan, found)[job] == everything[job]
        owners = {c.corpus for c in found}
        # 'dolma1_7-no-code' could be a size and a seed of 'dolma1_7' by its name.
        assert owners == (
            {"c4"} if job.startswith("c4") else {"dolma1_7"} | ({"dolma1_7-no-code"} if "no" in job else set())
        )


def test_a_job_of_a_corpus_plans_that_corpus(plan):
    everything = plan_checkpoints(plan)
    found = checkpoints_of_command(plan, ["--cores", "all", "--target-jobs", "solution_proxies:corpus=dolma1_7"])
    assert found == [c for c in everything if c.corpus == "dolma1_7"]
    both = checkpoints_of_command(plan, ["--target-jobs", "score:job=c4-4M-seed0", "score:job=dolma1_7-4M-seed0"])
    assert {c.corpus for c in both} == {"c4", "dolma1_7"}


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--target-jobs", "join_proxies:"],
        ["--target-jobs", "score:job=c4-4M-seed0", "join_proxies:"],
        ["--target-jobs", "read_data:data=c4"],
    ],
)
def test_any_other_job_plans_everything(plan, arguments):
    assert checkpoints_of_command(plan, arguments) == plan_checkpoints(plan)


PLANNED = """
import json, sys
from pathlib import Path
from snakemake import api
from snakemake.settings import types
from snakemake.target_jobs import parse_target_jobs_cli_args
mode, *targets = sys.argv[1:]
sys.argv[1:] = ["--target-jobs", *targets] if targets else []
[study] = [Path("config/scale.yaml")] if mode == "DEFAULT" else Path("results/scale/study").glob("*.json")
with api.SnakemakeApi(types.OutputSettings(quiet={types.Quietness.ALL})) as snakemake:
    workflow = snakemake.workflow(
        resource_settings=types.ResourceSettings(cores=1),
        config_settings=types.ConfigSettings(configfiles=[study]),
        workflow_settings=types.WorkflowSettings(exec_mode=types.ExecMode[mode]),
        snakefile=Path("Snakefile"),
    )
    jobs = parse_target_jobs_cli_args(targets) or []
    rules = {job.rulename for job in jobs}
    workflow.dag(types.DAGSettings(target_jobs=jobs, allowed_rules=rules, forcetargets=True)).execute_workflow("dryrun")
    found = {}
    for job in workflow._workflow.dag.jobs:
        resources = {key: value for key, value in job.resources.items() if isinstance(value, int)}
        lists = {name: list(getattr(job, name)) for name in ("input", "output", "log")}
        found[f"{job.rule.name} {job.wildcards_dict}"] = [dict(job.params.items()), resources, job.threads, lists]
    print("PLANNED", json.dumps(found, sort_keys=True, default=str))
"""


def jobs_of(project: Path, mode: str, *targets: str) -> dict[str, list]:
    """Job -> params, resources, threads and files, as a Snakemake of its own plans them."""
    command = [sys.executable, "-c", PLANNED, mode, *targets]
    finished = subprocess.run(command, cwd=project, capture_output=True, text=True)
    lines = [line for line in finished.stdout.splitlines() if line.startswith("PLANNED")]
    assert lines, finished.stderr[-3000:]
    return json.loads(lines[0].removeprefix("PLANNED"))


def test_a_job_is_what_the_main_process_planned(project):
    (project / "results/scale/solutions").mkdir(parents=True)
    for path in (project / "config").glob("*.jsonl"):
        (project / "results/scale/solutions" / path.name).write_text(path.read_text())
    planned = jobs_of(project, "DEFAULT")
    score = "score {'job': 'c4-4M-seed1'}"
    # Whatever becomes of the study's files in the meantime.
    (project / "config/scale.yaml").write_text("study: edited\n")
    shutil.rmtree(project / "config/corpora")
    found = jobs_of(project, "REMOTE", "score:job=c4-4M-seed1")
    assert list(found) == [score]
    assert found[score] == planned[score]
    params, resources, _, files = found[score]
    assert [name for name, *_ in params["checkpoints"]][:1] == ["c4-4M-seed1-step0"]
    assert resources["mem_mb"] > 0
    assert "config/recorded.parquet" in files["input"] and not any("weights" in path for path in files["input"])


# Tables in pieces


def test_files_go_into_lists_of_at_most_so_many_bytes(tmp_path):
    sizes = [3, 4, 9, 1, 20, 2, 2]
    paths = [tmp_path / f"{n}" for n in range(len(sizes))]
    for path, size in zip(paths, sizes):
        path.write_bytes(b"x" * size)
    lists = of_size(paths, 10)
    assert [[path.stat().st_size for path in found] for found in lists] == [[3, 4], [9, 1], [20], [2, 2]]
    assert [path for found in lists for path in found] == paths
    assert of_size([], 10) == []


def proxies_of(
    script: Path, folder: Path, manifests: list[Path], kept_checkpoints: list[str] | None
) -> list[pl.DataFrame]:
    """What scripts/solution_proxies.py makes of two jobs' token statistics: proxies of tasks, and of solutions."""
    params = {"proxies": {}, "tails": (1000, None), "kept": [{"statistic": "cross_entropy", "weighting": "uniform"}]}
    params |= {"kept_checkpoints": kept_checkpoints, "model_selection": {}, "seed": None}
    output = {"proxies": folder / "proxies.parquet", "of_solutions": folder / "of_solutions.parquet"}
    files = {"input": {"token_stats": manifests, "experts": []}, "output": output, "params": params}
    named = {name: Namedlist(fromdict=values) for name, values in files.items()}
    runpy.run_path(str(script), {"snakemake": SimpleNamespace(**named, log=[folder / "log"])})
    return [pl.read_parquet(path).sort("checkpoint", "task", "statistic", "weighting") for path in output.values()]


def test_proxies_do_not_depend_on_how_many_checkpoints_are_read_at_a_time(recorded, tmp_path):
    manifests = []
    for job in ("run1", "run2"):
        marks = replay(recorded, [f"{job}-step{n}" for n in (1, 2, 10)], ["a", "b"], tmp_path / job, code="code")
        manifests.append(tmp_path / job / "manifest.json")
        manifests[-1].write_text(json.dumps(marks))
    script = ROOT / "workflow/scripts/solution_proxies.py"
    one_by_one = tmp_path / "one_by_one.py"
    one_by_one.write_text(re.sub(r"BATCH_BYTES = \S+", "BATCH_BYTES = 1", script.read_text()))
    proxies, of_solutions = proxies_of(script, tmp_path, manifests, None)
    assert set(proxies["checkpoint"]) == {f"run{r}-step{n}" for r in (1, 2) for n in (1, 2, 10)}
    assert len(proxies) == 6 * 2 * 82 and len(of_solutions) == 6 * 3
    few, of_few = proxies_of(one_by_one, tmp_path, manifests, ["run1-step2", "run2-step10"])
    assert_frame_equal(few, proxies, abs_tol=1e-13)
    wanted = of_solutions.filter(pl.col("checkpoint").is_in(["run1-step2", "run2-step10"]))
    assert_frame_equal(of_few, wanted, check_row_order=False, abs_tol=1e-13)


def test_a_lazy_table_is_written_as_a_whole_one(tmp_path, monkeypatch):
    table = pl.DataFrame({"checkpoint": ["b", "a", "c"], "value": [0.1, None, float("nan")]})
    for n in range(2):
        write_table(table.slice(2 * n, 2), tmp_path / f"{n}.parquet", "part")
    monkeypatch.setattr(pl.LazyFrame, "collect", None)  # it must not be in memory as a whole
    write_table(pl.scan_parquet([tmp_path / "0.parquet", tmp_path / "1.parquet"]), tmp_path / "all.parquet", "mark")
    monkeypatch.undo()
    assert_frame_equal(pl.read_parquet(tmp_path / "all.parquet"), table)
    assert table_fingerprint(tmp_path / "all.parquet") == "mark"
    assert not list(tmp_path.glob(".*"))


def test_predictions_size_by_size_are_all_predictions(scale, tmp_path, plan):
    checkpoints = checkpoints_table(plan_checkpoints(plan), {})
    tasks = ["arc_easy", "piqa"]
    names = [(s, w) for s in STATISTICS for w in WEIGHTINGS] + [(b, "none") for b in BASELINES]
    keys = pl.DataFrame({"task": [*tasks, GENERIC_TEXT]}).join(
        pl.DataFrame(names, ["statistic", "weighting"], orient="row"), how="cross"
    )
    # A target's own proxies are there too, as where its early checkpoints are read.
    proxies = checkpoints.select("checkpoint").join(keys, how="cross").with_row_index()
    proxies = proxies.select(pl.exclude("index"), value=pl.col("index").cast(pl.Float64).sin())
    targets = checkpoints.select("checkpoint", metric=pl.lit("accuracy"), value=pl.lit(0.5), n=pl.lit(10))
    targets = targets.join(keys.select("task").unique(), how="cross")
    whole = predictions(checkpoints, proxies, targets, tasks)
    parts = list(predictions_by_size(checkpoints, proxies.lazy(), targets, tasks))
    assert [part["size"].unique().to_list() for part in parts] == [["4M"], ["1B"]]
    by = ["checkpoint", "task", "statistic", "weighting"]
    assert_frame_equal(pl.concat(parts).sort(by), whole.sort(by), check_exact=True)


def test_large_and_small_models_stand_in_one_table(plan):
    """6 N D of a model of 1B is more than an integer of 64 bits holds."""
    checkpoints = plan_checkpoints(plan)
    assert max(c.flops for c in checkpoints) > 2**63 and checkpoints[0].flops < 2**63
    table = checkpoints_table(checkpoints, {})
    assert table["flops"].to_list() == pytest.approx([c.flops for c in checkpoints], rel=1e-15)
    assert table.schema["flops"] == pl.Float64


# Replayed statistics


@pytest.fixture
def recorded(scale, tmp_path) -> Path:
    tokens = pl.DataFrame({"task": ["a", "a", "b"], "solution": ["x", "y", "x"], "position": [0, 0, 0]})
    scale.write_recorded(tokens, tmp_path / "recorded.parquet")
    return tmp_path / "recorded.parquet"


def test_a_checkpoint_gets_the_recorded_table_moved_by_its_name(recorded, tmp_path):
    before = pl.read_parquet(recorded)
    marks = replay(recorded, ["one", "two"], ["a", "b"], tmp_path / "parts", code="code")
    one, two = (pl.read_parquet(tmp_path / f"parts/{name}.parquet") for name in ("one", "two"))
    assert one.schema == pl.Schema(EXTRACTED_SCHEMA) and set(one["checkpoint"]) == {"one"}
    assert (one["logprob"] != two["logprob"]).all() and (one["logprob"] <= before["logprob"]).all()
    assert (one["logprob"] <= one["max_logprob"]).all()
    assert ((one["n_greater"] == 0) == (before["n_greater"] == 0)).all()
    kept = ["task", "solution", "position", "token", "bytes", "entropy", "n_equal", "vocabulary"]
    assert_frame_equal(one.select(kept), before.select(kept))
    assert {name: table_fingerprint(tmp_path / f"parts/{name}.parquet") for name in marks} == marks
    assert len(set(marks.values())) == 2


def test_a_replayed_table_is_kept_until_the_recording_changes(recorded, tmp_path):
    path = tmp_path / "parts/one.parquet"
    marks = replay(recorded, ["one"], ["a", "b"], path.parent, code="code")
    times = path.stat().st_mtime_ns
    assert replay(recorded, ["one"], ["a", "b"], path.parent, code="code") == marks
    assert path.stat().st_mtime_ns == times
    write_table(pl.read_parquet(recorded).with_columns(entropy=pl.lit(1.0, pl.Float32)), recorded, "other")
    assert replay(recorded, ["one"], ["a", "b"], path.parent, code="code") != marks
    assert set(pl.read_parquet(path)["entropy"]) == {1.0}
    marks = replay(recorded, ["one"], ["a", "b"], path.parent, code="code")
    assert replay(recorded, ["one"], ["a", "b"], path.parent, code="other code") != marks


def test_a_recording_of_other_tasks_is_refused(recorded, tmp_path):
    with pytest.raises(InputError, match=r"recorded.parquet: found tasks \['a', 'b'\]; .* \['a', 'c'\]"):
        replay(recorded, ["one"], ["a", "c"], tmp_path, code="code")


def test_replaying_needs_a_truth_from_elsewhere(monkeypatch):
    monkeypatch.chdir(ROOT)
    study = read_yaml(Path("config/smoke.yaml")) | {"replay": "recorded.parquet"}
    with pytest.raises(InputError, match="the study: replay: .* give target.table or .evaluations"):
        load_plan(study, where="the study")


def test_replaying_and_planning_import_nothing_heavy():
    modules = (
        "proxycast.extraction.engines.replay, proxycast.jobs, proxycast.study.checkpoints, proxycast.study.checks, "
    )
    modules += "proxycast.cluster.model_jobs"
    heavy = "{'torch', 'transformers', 'scipy', 'matplotlib', 'rich', 'vllm'}"
    code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
