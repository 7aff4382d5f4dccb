"""Fit the regression over mixtures, propose the next ones; write tables, figures and what mixture optimisers read."""

from pathlib import Path

import polars as pl
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Budget, Proxy
from proxycast.config.truth import Target
from proxycast.experiments.checkpoint_means import checkpoint_means
from proxycast.experiments.data_selection.mixtures import as_csv, mixture_metrics, mixture_tables
from proxycast.jobs import job
from proxycast.report.comparisons import mixture_figures as plots
from proxycast.report.style import save
from proxycast.tables import fingerprint, read_table, scan_tables, table_fingerprint, write_table

with job(snakemake.log[0]):
    params, inputs, output = snakemake.params, snakemake.input, snakemake.output
    study, checkpoints = params.study, read_table(inputs.checkpoints)
    options = SelectionOptions(**study["selection"])

    def means(values: pl.LazyFrame) -> pl.LazyFrame:
        return checkpoint_means(values, checkpoints.filter(role="proxy"), options.last_checkpoints)

    metrics = mixture_metrics(
        checkpoints,
        means(scan_tables(inputs.proxies)) if inputs.get("proxies") else None,
        read_table(inputs.targets) if inputs.get("targets") else None,
        params.tasks,
        [Budget(**budget) for budget in study["budgets"]],
        [Proxy(**proxy) for proxy in study["highlighted"]],
        Target(**study["target"]) if study["target"] else None,
        read_table(inputs.outside) if inputs.get("outside") else None,
    )
    tables = mixture_tables(params.mixtures, metrics, options)
    sources = [inputs.checkpoints, inputs.get("proxies"), inputs.get("targets"), inputs.get("outside")]
    made_from = fingerprint(*(table_fingerprint(Path(path)) for path in sources if path), study, params.mixtures)
    for name, table in tables.items():
        write_table(table, Path(output[name]), made_from, csv=as_csv(name, table))
    figures = {
        "mixtures_held_out": plots.held_out(tables["mixture_predictions"], tables["mixture_regression"]),
        "mixtures_next": plots.next_mixtures(tables["next_mixtures"], tables["ratios"], tables["mixture_regression"]),
    }
    for name, figure in figures.items():
        save(figure, Path(output[name]).with_suffix(""))
