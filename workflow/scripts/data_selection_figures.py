"""Draw every figure of the data selection."""

from pathlib import Path

import polars as pl
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Budget
from proxycast.config.truth import Target
from proxycast.experiments.data_selection.corpus_truth import about_noisy_metric
from proxycast.experiments.reliability import NOISE
from proxycast.jobs import job
from proxycast.report import data_selection_figures as plots
from proxycast.report.style import save
from proxycast.tables import read_table

with job(snakemake.log[0]):
    study, inputs = snakemake.params.study, snakemake.input
    target, options = Target(**study["target"]), SelectionOptions(**study["selection"])
    highlighted = [(proxy["statistic"], proxy["weighting"]) for proxy in study["highlighted"]]
    decision_accuracy = read_table(inputs.decision_accuracy).filter(truth=target.metric, task="all")
    ranking = read_table(inputs.ranking)
    truth = read_table(inputs.truth).row(by_predicate=pl.col("metric") == target.metric, named=True)
    ceiling, warning = (
        truth["ceiling_decision_accuracy"],
        about_noisy_metric(truth) if truth["verdict"] == NOISE else "",
    )
    figures = {
        "pareto_frontier": plots.decision_accuracy_over_compute(
            read_table(inputs.pareto), ceiling, options.thresholds, highlighted, warning
        ),
        "decision_accuracy_over_training": plots.decision_accuracy_over_training(
            decision_accuracy, ceiling, highlighted, plots.LINED_BASELINES, warning=warning
        ),
    }
    for budget in (Budget(**budget) for budget in study["budgets"]):
        at = (budget.size, budget.step)
        proxy_at = (*highlighted[0], *at)
        figures |= {
            f"ranking_with_intervals_{budget.size}_step{budget.step}": plots.ranking_with_intervals(
                ranking, decision_accuracy, proxy_at, ceiling, warning=warning
            ),
            f"proxy_against_truth_{budget.size}_step{budget.step}": plots.proxy_against_truth(
                ranking, decision_accuracy, proxy_at, ceiling, "mean", warning, truth["higher_is_better"]
            ),
        }
        if "proxy" in set(decision_accuracy["kind"]):
            heatmap = plots.decision_accuracy_heatmap(decision_accuracy, *at, ceiling, warning=warning)
            figures[f"decision_accuracy_heatmap_{budget.size}_step{budget.step}"] = heatmap
    for name, figure in figures.items():
        save(figure, Path(snakemake.output[name]).with_suffix(""))
