"""Draw what choosing a corpus costs, and how sure a predicted gap is."""

from pathlib import Path

import polars as pl
from proxycast.config.study import Budget
from proxycast.config.truth import Target
from proxycast.experiments.data_selection.corpus_truth import about_noisy_metric
from proxycast.experiments.reliability import NOISE
from proxycast.experiments.signal_to_noise import CONSTANT
from proxycast.jobs import job
from proxycast.report.comparisons import choice_figures as plots
from proxycast.report.style import save
from proxycast.tables import read_table

with job(snakemake.log[0]):
    study, inputs = snakemake.params.study, snakemake.input
    metric = Target(**study["target"]).metric
    highlighted = [(proxy["statistic"], proxy["weighting"]) for proxy in study["highlighted"]]
    choices, margins = read_table(inputs.choices), read_table(inputs.margins)
    truth = read_table(inputs.truth).row(by_predicate=pl.col("metric") == metric, named=True)
    warning = about_noisy_metric(truth) if truth["verdict"] == NOISE else ""
    figures = {"regret_over_compute": plots.regret_over_compute(choices, highlighted, metric, warning)}
    for budget in (Budget(**budget) for budget in study["budgets"]):
        at, models = f"{budget.size}_step{budget.step}", f"{budget.size} models at step {budget.step:,}"
        costs, gaps = (
            plots.corpus_methods(table.filter(size=budget.size, step=budget.step, seed="mean"), highlighted)
            for table in (choices, margins)
        )
        costs = costs.filter(~pl.col("statistic").is_in(CONSTANT))
        title = f"What choosing a corpus costs: {models}"
        figures[f"regret_by_method_{at}"] = plots.regret_by_method(costs, title, metric, "corpora", warning)
        title, gaps = f"How sure a predicted gap is: {models}", plots.first_methods(gaps, "statistic")
        figures[f"gap_calibration_{at}"] = plots.gap_calibration(gaps, title, "corpora", warning)
    for name, figure in figures.items():
        save(figure, Path(snakemake.output[name]).with_suffix(""))
