"""Figures of the models' order: no two texts overlap, and what is drawn is what the tables say."""

import numpy as np
import polars as pl
import pytest
from drawn_texts import overlapping, texts
from proxycast.config.study import DEFAULT_PROXIES, Proxy
from proxycast.experiments.model_selection.known_models import known_models
from proxycast.experiments.model_selection.model_ranking import learn, ranking_tables
from proxycast.report import model_ranking_figures as plots
from selection_study import CHECKPOINTS, FAST, MODELS, TASKS, of_solutions_of, proxies_from, targets_of

NAMED = [Proxy(statistic="top5_accuracy", weighting="entropy"), DEFAULT_PROXIES[-1]]
UNMEASURED = ["gpt2-3", "neox-1"]


def tables_of(models=MODELS, tasks=TASKS, solutions=6, truth=False):
    of_solutions = of_solutions_of(tasks=tasks, solutions=solutions).filter(pl.col("checkpoint").is_in(models))
    own, proxies = CHECKPOINTS.filter(pl.col("checkpoint").is_in(models)), proxies_from(of_solutions)
    known, learned = known_models(own, proxies, None, tasks), ()
    if truth:
        measured = own.filter(~pl.col("checkpoint").is_in(UNMEASURED))
        judged = known_models(measured, proxies, targets_of(), tasks, "accuracy")
        learned = (learn(judged, ["rank_svm_linear", "univariate"], {("rank_svm_linear", "tokens"): 0.9}),)
    return ranking_tables(known, of_solutions.lazy(), NAMED, FAST, *learned)


STUDIES = {
    "smallest": {"models": MODELS[:2], "tasks": TASKS[:1], "solutions": 1},
    "one task": {"models": MODELS[:5], "tasks": TASKS[:1]},
    "no truth": {},
    "judged": {"truth": True},
}


@pytest.fixture(scope="module", params=STUDIES, ids=list(STUDIES))
def study(request):
    return request.param, tables_of(**STUDIES[request.param])


def words(figure) -> str:
    figure.draw_without_rendering()
    return " ".join(text.get_text() for text in texts(figure)[0])


def test_no_texts_overlap(study):
    _, tables = study
    for figure in (
        plots.models_ranked(tables["ranking"]),
        plots.model_pairs(tables["pairs"], tables["ranking"]),
        plots.model_agreement(tables["agreement"], tables["ranking"]),
    ):
        assert overlapping(figure) == []


def test_the_order_is_that_of_the_first_method(study):
    name, tables = study
    first = plots.leading(tables["ranking"])
    figure = plots.models_ranked(tables["ranking"])
    order = first.filter(task="all")["model"].to_list()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == order
    tasks = ["all", *TASKS] if name in ("no truth", "judged") else TASKS[:1]
    assert len(figure.axes) == len(tasks)
    for axes, task in zip(figure.axes, tasks):
        rows = {row["model"]: row for row in first.filter(task=task).iter_rows(named=True)}
        drawn = [line.get_xdata()[0] for line in axes.lines]
        assert drawn == pytest.approx([rows[model]["score"] for model in order])
        bars = [bar.get_segments()[0][:, 0] for bar in axes.collections]
        ends = [(rows[m]["score_low"], rows[m]["score_high"]) for m in order if rows[m]["score_low"] is not None]
        assert len(bars) == len(ends) and np.allclose(bars, ends)
    said = words(figure)
    assert ("No truth, so nothing is judged" in said) == (name != "judged")
    assert ("Without a bar: nothing could be resampled" in said) == (name == "smallest")
    assert ("Grey: the scorer has learned" in said) == (name == "judged")
    assert ("best where two tasks are held out (mean ρ 0.90)" in said) == (name == "judged")


def test_squares_are_the_pairs_that_can_be_told_apart(study):
    name, tables = study
    figure = plots.model_pairs(tables["pairs"], tables["ranking"])
    own = plots.leading(tables["pairs"]).filter(task="all")
    values = figure.axes[0].collections[0].get_array()
    assert (values == 1).sum() == own["told_apart"].sum() or name == "smallest"
    if name == "smallest":
        assert np.ma.count(values) == 0 and "no pair is judged" in words(figure)
    else:
        assert np.ma.count(values) == len(own) and f"({own['told_apart'].sum()} of {len(own)} pairs)" in words(figure)


def test_agreement_names_every_method(study):
    _, tables = study
    said = words(plots.model_agreement(tables["agreement"], tables["ranking"]))
    for name in plots.method_names(tables["ranking"]).values():
        assert name in said
    value = tables["agreement"].filter(task="all").row(0, named=True)["spearman"]
    assert f"{value:.2f}" in said
