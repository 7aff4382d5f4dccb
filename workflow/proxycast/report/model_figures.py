"""Every figure of a model selection: which tables it is drawn from, and its name, which is that of its file."""

from collections.abc import Iterator, Mapping

import polars as pl
from matplotlib.figure import Figure

from proxycast.config.experiments.selection_options import ModelSelectionOptions, SelectionOptions
from proxycast.config.truth import Target
from proxycast.experiments.model_selection.task_truth import about_noisy_task
from proxycast.experiments.reliability import NOISE
from proxycast.report import model_ranking_figures as ranked
from proxycast.report import model_selection_figures as judged
from proxycast.report import post_training_figures as post_trained
from proxycast.report.comparisons import choice_figures as chosen
from proxycast.report.comparisons.solution_count_figures import figure_over_number
from proxycast.tables import read_table

FIXED_IN_ADVANCE = "rank_svm_linear"
Named = tuple[str, Figure]


def model_figures(paths: Mapping[str, str], study: dict) -> Iterator[Named]:
    """Name and figure, one after the other; `paths`: table -> file; `study`: its sections, as a rule's parameter."""
    tables = {name: read_table(path) for name, path in paths.items()}
    ranking = tables["ranking"]
    yield "models_ranked", ranked.models_ranked(ranking)
    yield "model_pairs", ranked.model_pairs(tables["pairs"], ranking)
    yield "model_agreement", ranked.model_agreement(tables["agreement"], ranking)
    if study["target"]:
        yield from _of_methods(tables, ModelSelectionOptions(**study["model_selection"]).scorers)
        yield from _of_choices(tables, Target(**study["target"]).metric)
    if "populations" in tables:
        yield "post_training_methods", post_trained.populations_compared(tables["populations"])
        yield "post_training_shifts", post_trained.shifts_compared(tables["recipe_shifts"], tables["recipe_means"])
    if "writers" in tables:  # of models that were run
        yield "solutions_and_writers", judged.solutions_and_writers(tables["writers"])
        yield "model_selection_heatmap", judged.model_selection_heatmap(tables["proxies"])
    if "solution_counts" in tables:
        confidence = SelectionOptions(**study["selection"]).confidence
        figure = figure_over_number(tables["solution_counts"], "spearman", "models", confidence, "")
        yield "model_solution_counts", figure


def _of_methods(tables: Mapping[str, pl.DataFrame], scorers: list[str]) -> Iterator[Named]:
    """How well each method orders the models."""
    folds, truth = tables["folds"], tables["truth"]
    method = FIXED_IN_ADVANCE if FIXED_IN_ADVANCE in scorers else scorers[0]
    yield "methods", judged.methods_compared(tables["summary"], folds, truth)
    yield (
        "predicted_against_true_rank",
        judged.predicted_against_true_rank(tables["predictions"], folds, method, truth),
    )
    yield "proxies_chosen", judged.proxies_chosen(tables["stability"])


def _of_choices(tables: Mapping[str, pl.DataFrame], metric: str) -> Iterator[Named]:
    """What choosing a model costs, and how sure a predicted gap is."""
    choices, margins = (chosen.model_methods(tables[name]) for name in ("choices", "margins"))
    costs = choices.filter(pl.col("split") == "two_tasks", pl.col("method") != "chance")
    noise = tables["truth"].filter(task="all", verdict=NOISE)
    warning = "".join(map(about_noisy_task, noise.iter_rows(named=True)))
    title = "What choosing a model costs: two tasks held out"
    yield "model_regret", chosen.regret_by_method(costs, title, metric, "models", warning)
    margins = chosen.first_methods(margins, "method")
    title = "How sure a predicted gap between models is: two tasks held out"
    yield "model_gap_calibration", chosen.gap_calibration(margins, title, "models", warning)
