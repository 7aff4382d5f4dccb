"""Draw what choosing a model costs, and how sure a predicted gap is."""

from pathlib import Path

import polars as pl
from proxycast.config.truth import Target
from proxycast.experiments.model_selection.task_truth import about_noisy_task
from proxycast.experiments.reliability import NOISE
from proxycast.jobs import job
from proxycast.report.comparisons import choice_figures as plots
from proxycast.report.style import save
from proxycast.tables import read_table

with job(snakemake.log[0]):
    inputs = snakemake.input
    metric = Target(**snakemake.params.study["target"]).metric
    choices, margins = (plots.model_methods(read_table(path)) for path in (inputs.choices, inputs.margins))
    costs = choices.filter(pl.col("split") == "two_tasks", pl.col("method") != "chance")
    noise = read_table(inputs.truth).filter(task="all", verdict=NOISE)
    warning = "".join(map(about_noisy_task, noise.iter_rows(named=True)))
    figures = {
        "model_regret": plots.regret_by_method(
            costs, "What choosing a model costs: two tasks held out", metric, "models", warning
        ),
        "model_gap_calibration": plots.gap_calibration(
            plots.first_methods(margins, "method"),
            "How sure a predicted gap between models is: two tasks held out",
            "models",
            warning,
        ),
    }
    for name, figure in figures.items():
        save(figure, Path(snakemake.output[name]).with_suffix(""))
