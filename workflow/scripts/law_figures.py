"""Draw every figure of the scaling laws."""

from pathlib import Path

import polars as pl
from proxycast.config.truth import Target
from proxycast.experiments.data_selection.corpus_truth import about_noisy_metric
from proxycast.experiments.reliability import NOISE
from proxycast.jobs import job
from proxycast.report.comparisons import law_figures as plots
from proxycast.report.style import save
from proxycast.tables import read_table

with job(snakemake.log[0]):
    inputs, target = snakemake.input, Target(**snakemake.params.study["target"])
    truth = read_table(inputs.truth).row(by_predicate=pl.col("metric") == target.metric, named=True)
    warning = about_noisy_metric(truth) if truth["verdict"] == NOISE else ""
    true = read_table(inputs.ranking).select("corpus", "true_rank").drop_nulls().unique().sort("true_rank", "corpus")
    gains = read_table(inputs.law_gains)
    figures = {
        "law_decision_accuracy": plots.law_decision_accuracy(
            read_table(inputs.pareto), gains, truth["ceiling_decision_accuracy"], warning
        ),
        "law_differences": plots.law_differences(gains, warning),
        "law_curves": plots.law_curves(
            read_table(inputs.scaling_laws), read_table(inputs.law_points), true["corpus"].to_list(), warning
        ),
    }
    for name, figure in figures.items():
        save(figure, Path(snakemake.output[name]).with_suffix(""))
