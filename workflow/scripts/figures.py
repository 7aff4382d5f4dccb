"""Draw every figure of the data selection."""

from pathlib import Path

import polars as pl
from proxycast import plots
from proxycast.config import Budget, Target
from proxycast.jobs import job
from proxycast.ranking import SelectionOptions

BASELINES = ("multiple_choice_accuracy", "choice_log_likelihood", "generic_cross_entropy", "expert_cross_entropy")

with job(snakemake.log[0]):
    study, inputs = snakemake.params.study, snakemake.input
    target, options = Target(**study["target"]), SelectionOptions(**study["selection"])
    highlighted = [(proxy["statistic"], proxy["weighting"]) for proxy in study["highlighted"]]
    budget = Budget(**study["budgets"][-1])  # the one that the ranking is drawn for
    decision_accuracy = pl.read_parquet(inputs.decision_accuracy).filter(truth=target.metric)
    macro = decision_accuracy.filter(task="all")
    ranking = pl.read_parquet(inputs.ranking)
    ceiling = pl.read_parquet(inputs.truth).filter(metric=target.metric)["ceiling_decision_accuracy"].item()
    best = (*highlighted[0], budget.size, budget.step)
    figures = {
        "pareto_frontier": plots.pareto_frontier(pl.read_parquet(inputs.pareto), ceiling, options.thresholds, highlighted),
        "ranking_with_intervals": plots.ranking_with_intervals(ranking, *best),
        "proxy_against_truth": plots.proxy_against_truth(ranking, macro, *best, ceiling),
        "decision_accuracy_heatmap": plots.decision_accuracy_heatmap(macro, budget.size, budget.step),
        "decision_accuracy_over_training": plots.decision_accuracy_over_training(macro, highlighted, BASELINES),
    }
    for name, figure in figures.items():
        plots.save(figure, Path(snakemake.output[f"{name}_png"]).with_suffix(""))
