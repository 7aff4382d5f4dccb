"""The miniature studies of the other two settings, as a user runs them: one command each, to the report.

They train two dozen models and half a dozen curves, some minutes each, so they stand here and not among the unit tests.
"""

import json
import re
from itertools import combinations
from math import comb
from pathlib import Path

import forked_python
import numpy as np
import polars as pl
import pytest
import yaml
from conftest import copy_project, write_json
from page_studies import check_finished
from proxycast.experiments.judges.judge_application import apply_judge
from proxycast.experiments.judges.judge_file import read_judge
from scipy.stats import spearmanr

pytestmark = pytest.mark.slow
METRIC = "multiple_choice_accuracy"


def run(project: Path, study: str, *arguments: str) -> str:
    command = ["snakemake", "--configfile", f"config/{study}.yaml", "--cores", "2", *arguments]
    finished = forked_python.run(*command, cwd=project, merged=True)
    assert finished.returncode == 0, finished.stdout[-5000:]
    return finished.stdout


def finish(project: Path, study: str, *arguments: str) -> None:
    """The study in the project, with its report; a second run must have nothing to do."""
    report = str(project / "results" / study / "provenance.html")
    run(project, study, "--report", report, "--report-after-run", *arguments)
    assert "Nothing to be done" in run(project, study)


def finish_models(project: Path) -> None:
    """Without one of its corpora: 20 models, trained as in the study. With fewer samples of writers and bootstraps."""
    path = copy_project(project) / "config/miniature_model_selection.yaml"
    study = yaml.safe_load(path.read_text())
    study["corpora"]["miniature"].remove("web_crawl_books_60")
    study["model_selection"] |= {"draws": 2}
    study["selection"] = {"bootstrap_replicates": 200}
    for writer in study["writers"].values():
        writer["samples"] = 2
    write_json(study, path)
    # Two processes would each learn what both need. The study of post-trained models has two.
    finish(project, "miniature_model_selection", "--set-threads", "model_selection=1")


def finish_curves(project: Path) -> None:
    """With a sixteenth of all steps, a sixth of the problems and a tenth of the documents."""
    path = copy_project(project) / "config/miniature_forecasting.yaml"
    study = yaml.safe_load(path.read_text())
    study["miniature"] |= {"problems": 12, "generic_documents": 12, "scale": 0.1}
    [size] = study["miniature"]["sizes"].values()
    size |= {"steps": size["steps"] // 16, "checkpoints": [step // 16 for step in size["checkpoints"]]}
    study["forecasting"]["fit_up_to_step"] //= 16
    write_json(study, path)
    finish(project, "miniature_forecasting")


@pytest.fixture(scope="session")
def models(once):
    return once("models", finish_models) / "results/miniature_model_selection"


@pytest.fixture(scope="session")
def curves(once):
    return once("curves", finish_curves) / "results/miniature_forecasting"


@pytest.mark.parametrize("study", ["model_selection", "forecasting", "forecasting_think"])
def test_the_papers_studies_are_planned_without_network(tmp_path, study):
    copy_project(tmp_path)
    planned = run(tmp_path, study, "-n")
    counts = dict(re.findall(r"^(\w+) +(\d+)$", planned.partition("Job stats:")[2], re.MULTILINE))
    checkpoints = {"model_selection": 18, "forecasting": 1, "forecasting_think": 1}[study]  # runs
    assert counts["score"] == counts["download_run"] == str(checkpoints)
    assert (
        counts.get("write_solutions", "0")
        == {"model_selection": "3", "forecasting": "0", "forecasting_think": "1"}[study]
    )


def read(results: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(results / f"{name}.parquet")


def require_in_report(results: Path, experiment: str) -> None:
    report = (results / "provenance.html").read_text()
    figures = sorted((results / experiment).glob("*.png"))
    assert figures and all(figure.name in report for figure in figures)
    assert all(path.with_suffix(".svg").is_file() for path in figures)


def test_models_differ_as_the_study_says_and_are_past_the_floor(models):
    checkpoints, targets = read(models, "checkpoints"), read(models, "targets").filter(metric=METRIC)
    configs = [json.loads(Path(models.parents[1], f, "config.json").read_text()) for f in checkpoints["source"]]
    assert len(checkpoints) >= 18 and len({c["vocab_size"] for c in configs}) >= 3
    assert {c["model_type"] for c in configs} >= {"llama", "gpt2", "gpt_neox"} == set(checkpoints["family"])
    assert targets["task"].n_unique() >= 6
    means = targets.group_by("checkpoint").agg(pl.col("value").mean())["value"]
    assert means.min() <= 0.3 and means.max() >= 0.7
    assert read(models, "model_selection/truth").filter(task="all")["reliability"].item() > 0.9


def test_every_fold_is_judged_as_scipy_judges_it(models):
    folds, predictions = read(models, "model_selection/folds"), read(models, "model_selection/predictions")
    two_tasks = folds.filter(split="two_tasks")
    tasks = sorted(set(two_tasks["task"]))
    assert {tuple(sorted(name.split(", "))) for name in two_tasks["held_out"]} == set(combinations(tasks, 2))
    assert two_tasks["fold"].n_unique() == comb(len(tasks), 2)
    assert set(folds["tail"]) == {"tokens", "bytes", ""} and set(folds["kind"]) == {"scorer", "baseline", "oracle"}
    keys = ["split", "fold", "task", "method", "tail"]
    judged = folds.filter(pl.col("spearman").is_not_null(), pl.col("note") == "")
    rho = {
        key: spearmanr(rows["score"].round(12), rows["truth"].round(12)).statistic
        for key, rows in predictions.group_by(keys)
        if rows["score"].round(12).n_unique() > 1
    }
    found = {key: value for *key, value in judged.select(*keys, "spearman").iter_rows() for key in [tuple(key)]}
    assert len(found) > 1000 and found == pytest.approx({key: rho[key] for key in found})
    # What orders nothing counts 0.
    means = (
        folds.drop_nulls("spearman").group_by("split", "method", "tail").agg(pl.col("spearman").mean()).sort(pl.all())
    )
    summary = read(models, "model_selection/summary").join(means, on=["split", "method", "tail"], suffix="_by_hand")
    np.testing.assert_allclose(summary["spearman"], summary["spearman_by_hand"])


@pytest.mark.browser
@pytest.mark.parametrize("study", ["models", "curves"])
def test_their_pages(browser, request, study):
    path = check_finished(browser, request.getfixturevalue(study))
    assert path.stat().st_size < 4e6


def test_the_other_tables_of_the_models(models):
    writers = read(models, "model_selection/writers")
    assert {10, 30, None} <= set(writers["number"]) and writers["draw"].n_unique() > 1
    assert read(models, "model_selection/chosen").filter(scorer="sparse3").group_by("split", "fold", "tail").len()[
        "len"
    ].unique().to_list() == [3]
    ranking = read(models, "model_selection/ranking")
    first, summary = ranking.row(0, named=True), read(models, "model_selection/summary")
    assert (
        first["task"] == "all"
        and first["place"] == 1
        and first["held_out_spearman"] >= summary.filter(split="two_tasks", kind="scorer")["spearman"].max()
    )
    assert set(ranking.filter(kind="scorer")["rests_on"]) == {"in sample"} and ranking["truth"].null_count() == 0
    require_in_report(models, "model_selection")


def test_curves_are_long_enough_and_errors_follow_from_the_forecasts(curves):
    checkpoints, forecasts = read(curves, "checkpoints"), read(curves, "forecasting/forecasts")
    assert checkpoints["run"].n_unique() >= 4
    assert checkpoints.group_by("run").len()["len"].min() >= 12
    assert forecasts["horizon"].max() >= 18
    errors = read(curves, "forecasting/errors").filter(task="all")
    judged = forecasts.drop_nulls("truth").with_columns(error=pl.col("predicted") - pl.col("truth"))
    by_hand = judged.group_by("method", "horizon").agg(
        rmse_by_hand=(pl.col("error") ** 2).mean().sqrt(),
        coverage_by_hand=((pl.col("low") <= pl.col("truth")) & (pl.col("truth") <= pl.col("high"))).mean(),
    )
    joined = errors.join(by_hand, on=["method", "horizon"], how="left")
    assert len(joined) > 20 and joined["rmse_by_hand"].null_count() == 0
    np.testing.assert_allclose(joined["rmse"], joined["rmse_by_hand"])
    known = joined.drop_nulls("coverage")
    np.testing.assert_allclose(known["coverage"], known["coverage_by_hand"])
    require_in_report(curves, "forecasting")


def test_the_judge_of_the_models_scores_them_as_the_study_does(models):
    """What outlives the study are its scorers: applied to the same models they give the ranking's scores."""
    judge = read_judge(models / "model_selection/judge.json")
    checkpoints = pl.read_parquet(models / "checkpoints.parquet")
    values = pl.read_parquet(models / "proxies.parquet").with_columns(solution=pl.lit(""))
    values = values.filter(pl.col("weighting") != "none", pl.col("task") != "generic_text")
    ours = apply_judge(judge, values, checkpoints)
    theirs = read(models, "model_selection/ranking").filter(kind="scorer")
    theirs = theirs.select("tail", "task", scorer="method", model="checkpoint", expected="score")
    both = ours.join(theirs, on=["scorer", "tail", "task", "model"])
    assert len(both) == len(ours) > 0
    assert both["score"].to_numpy() == pytest.approx(both["expected"].to_numpy(), abs=1e-6)
    assert ours.filter(pl.col("task") != "all")["predicted"].null_count() == 0
