"""Figures of what post-training changes: every mark is a row of the tables."""

import numpy as np
import polars as pl
import pytest
from drawn_texts import overlapping, texts
from matplotlib.colors import to_hex
from post_trained_study import PROXIES, RECIPES, checkpoints_of, gather
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Proxy
from proxycast.experiments.model_selection.folds import leave_two_tasks_out, score_folds
from proxycast.experiments.model_selection.scorers import RankSVMLinear, Univariate
from proxycast.experiments.post_trained.post_training_tables import post_trained_tables
from proxycast.report.post_training_figures import POPULATION_LOOKS, populations_compared, shifts_compared

SCORERS = {"univariate": Univariate(), "rank_svm_linear": RankSVMLinear(Cs=[1.0])}
NAMED = [Proxy(statistic="top1_accuracy"), Proxy(statistic="margin")]


def made(checkpoints, tails=("tokens", "bytes")):
    known, options = gather(checkpoints, tails=tails), SelectionOptions(bootstrap_replicates=100)
    folds = leave_two_tasks_out(known)
    scores, _ = score_folds(known, folds, SCORERS)
    return post_trained_tables(known, SCORERS, NAMED, options, None, 1, folds=folds, scores=scores)


@pytest.fixture(scope="module")
def tables():
    return made(checkpoints_of(bases=6))


def words(figure):
    return [text.get_text() for text in texts(figure)[0]]


def test_every_method_has_a_mark_for_every_population(tables):
    figure, table = populations_compared(tables["populations"]), tables["populations"]
    assert overlapping(figure) == []
    assert {"Scorers", "Proxies", "Baselines", "Oracle"} <= set(words(figure)) and "Chance" not in words(figure)
    rows = table.filter(pl.col("tail").is_in(["tokens", ""]), pl.col("method") != "chance")
    for population, (_, colour, marker) in POPULATION_LOOKS.items():
        own = rows.filter(population=population)
        found = [
            line.get_xdata()[0]
            for line in figure.axes[0].lines
            if line.get_marker() == marker and to_hex(line.get_color()) == colour.lower()
        ]
        assert sorted(found) == sorted(own["spearman"])
    assert any("48 models of 6 bases" in text for text in words(figure))


def test_shifts_are_drawn_by_recipe_and_their_means_are_crosses(tables):
    figure = shifts_compared(tables["recipe_shifts"], tables["recipe_means"])
    assert overlapping(figure) == []
    assert len(figure.axes) == len(PROXIES) + 1 and set(RECIPES[1:]) <= set(words(figure))
    axes = next(axes for axes in figure.axes if axes.get_title(loc="left") == "Cross-entropy")
    assert axes.xaxis_inverted()
    own = tables["recipe_shifts"].filter(task="all", tail="tokens", statistic="cross_entropy")
    marks = [line for line in axes.lines if line.get_linestyle() == "None"]
    points = np.concatenate([line.get_xydata() for line in marks if line.get_marker() != "+"])
    expected = own.select("difference", "truth_difference").to_numpy()
    assert sorted(map(tuple, points)) == sorted(map(tuple, expected))
    means = tables["recipe_means"].filter(
        pl.col("recipe") != "all", task="all", tail="tokens", statistic="cross_entropy"
    )
    crosses = np.concatenate([line.get_xydata() for line in marks if line.get_marker() == "+"])
    assert sorted(map(tuple, crosses)) == sorted(means.select("difference", "truth_difference").rows())
    of_all = tables["recipe_means"].filter(recipe="all", task="all", tail="tokens", statistic="cross_entropy")
    assert f"ρ {of_all['spearman'].item():.2f}" in [text.get_text() for text in axes.texts]
    margin = next(axes for axes in figure.axes if axes.get_title(loc="left") == "Top-1 accuracy")
    assert not margin.xaxis_inverted()


def test_small_and_empty_studies_are_drawn(tables):
    few = made(checkpoints_of(bases=3, recipes=["none", "rl"]), tails=("bytes",))  # three bases: not judged, two a base
    assert set(few["populations"]["population"]) == {"all"}  # and three post-trained models
    assert overlapping(populations_compared(few["populations"])) == []
    assert overlapping(shifts_compared(few["recipe_shifts"], few["recipe_means"])) == []
    empty = {name: table.clear() for name, table in tables.items()}
    assert "No base and no post-trained model has a truth." in words(populations_compared(empty["populations"]))
    nothing = shifts_compared(empty["recipe_shifts"], empty["recipe_means"])
    assert any("together with its base" in text for text in words(nothing))
