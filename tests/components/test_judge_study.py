"""A judge from one study applied in another, as a user does it: models in folders, no truth, one command."""

import subprocess
from itertools import product
from pathlib import Path

import forked_python
import polars as pl
import pytest
from conftest import copy_project, write_json
from page_studies import check_finished
from proxycast import apply_judge, read_judge
from proxycast.tables import read_table

pytestmark = pytest.mark.slow
CORPORA, TASKS = ("core", "web_edu"), ("days_after", "homes", "products")


def snakemake(project: Path) -> subprocess.CompletedProcess:
    command = ["snakemake", "--configfile", "config/fresh.yaml", "--cores", "2"]
    return forked_python.run(*command, cwd=project, merged=True)


def finish_fresh(project: Path, smoke: Path) -> None:
    """Two corpora of the smoke study, by the models that it trained, ranked with its judge."""
    copy_project(project)
    results = smoke / "results/smoke"
    for corpus in CORPORA:
        folder = f"{results}/suite/models/{corpus}-{{size}}-seed{{seed}}/step{{step}}"
        entry = {"folder": folder, "size": "30k", "seed": [0, 1], "step": 40, "tokens_per_step": 1024}
        write_json({"name": corpus, "checkpoints": [entry]}, project / f"config/corpora/own/{corpus}.yaml")
    for task in TASKS:
        solutions = f"{results}/solutions/{task}.jsonl"
        write_json({"name": task, "solutions": solutions}, project / f"config/tasks/own/{task}.yaml")
    study = {"study": "fresh", "corpora": {"own": "all"}, "tasks": {"own": "all"}}
    study |= {"judges": {"there": f"{results}/data_selection/judge.json"}}
    write_json(study, project / "config/fresh.yaml")
    run = snakemake(project)
    assert run.returncode == 0, run.stdout[-5000:]


@pytest.fixture(scope="module")
def fresh(once, smoke) -> Path:
    return once("fresh", lambda project: finish_fresh(project, smoke))


def test_the_judge_of_one_study_ranks_the_corpora_of_another(fresh, smoke):
    judge = read_judge(smoke / "results/smoke/data_selection/judge.json")
    table = read_table(fresh / "results/fresh/data_selection/judged.parquet")
    proxies = {(proxy.statistic, proxy.weighting) for proxy in judge.corpus_proxies}
    found = set(table.select("judge", "statistic", "weighting", "corpus").iter_rows())
    assert found == {("there", *proxy, corpus) for proxy, corpus in product(proxies, CORPORA)}
    # The same models, tokenizer and solutions as in the judged study: values lie where the judge learned them.
    assert table["judged_size"].unique().to_list() == ["30k"] and table["judged_step"].unique().to_list() == [40]
    assert table["predicted"].null_count() == 0
    assert not table["warnings"].str.contains("tokenizer|tasks|size|training|value range|solutions").any()
    there = read_table(smoke / "results/smoke/data_selection/ranking.parquet").filter(size="30k", step=40)
    both = table.join(there, on=["corpus", "statistic", "weighting"])
    assert len(both) == len(table)
    assert both["score"].to_list() == pytest.approx(both["predicted_right"].to_list(), rel=1e-5)


@pytest.mark.browser
def test_its_page_stands_without_a_truth(browser, fresh):
    check_finished(browser, fresh / "results/fresh")


def test_python_says_the_same_as_the_workflow(fresh, smoke):
    """From the token statistics alone."""
    results = fresh / "results/fresh"
    token_stats = pl.scan_parquet(results / "token_stats/*/*.parquet")
    judge = read_judge(smoke / "results/smoke/data_selection/judge.json")
    ours = apply_judge(
        judge, token_stats, read_table(results / "checkpoints.parquet"), tokenizers=judge.tokenizers, name="there"
    )
    columns = ["statistic", "weighting", "corpus", "score", "place", "predicted", "predicted_low", "predicted_high"]
    theirs = read_table(results / "data_selection/judged.parquet").select(columns).sort(columns[:3])
    for name in columns[3:]:
        assert ours.sort(columns[:3])[name].to_list() == pytest.approx(theirs[name].to_list()), name


def test_a_judge_with_other_options_stops_the_study_before_anything_runs(fresh, tmp_path):
    project = copy_project(tmp_path)
    for part in ("corpora/own", "tasks/own"):
        for path in (fresh / "config" / part).iterdir():
            (project / "config" / part).mkdir(parents=True, exist_ok=True)
            (project / "config" / part / path.name).write_text(path.read_text())
    (project / "config/fresh.yaml").write_text((fresh / "config/fresh.yaml").read_text())
    text = (project / "config/fresh.yaml").read_text()
    (project / "config/fresh.yaml").write_text(text[:-1] + ', "extraction": {"tail_tokens": 7}}')
    run = snakemake(project)
    assert (
        run.returncode != 0 and "judge.json: made with extraction.tail_tokens 1000, but this study has 7" in run.stdout
    )
    assert not (project / "results").exists()
