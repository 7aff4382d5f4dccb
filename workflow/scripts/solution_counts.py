"""How many solutions are enough to order the corpora, and which ones."""

from pathlib import Path

import polars as pl
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Budget, Proxy
from proxycast.config.truth import Target
from proxycast.experiments.checkpoint_means import checkpoint_means
from proxycast.experiments.data_selection.corpus_truth import mean_truth
from proxycast.experiments.data_selection.solution_counts import solution_tables
from proxycast.jobs import job
from proxycast.tables import fingerprint, read_table, scan_tables, table_fingerprint, write_table

with job(snakemake.log[0]):
    study, inputs = snakemake.params.study, snakemake.input
    checkpoints, options = read_table(inputs.checkpoints), SelectionOptions(**study["selection"])

    def means(values: pl.LazyFrame) -> pl.LazyFrame:
        return checkpoint_means(values, checkpoints.filter(role="proxy"), options.last_checkpoints)

    truth = None
    if inputs.targets:
        targets = means(read_table(inputs.targets[0]).lazy()).collect()
        truth = mean_truth(checkpoints, targets, snakemake.params.tasks, Target(**study["target"]))
    tables = solution_tables(
        checkpoints,
        means(scan_tables(inputs.solution_proxies)).filter(tail="tokens"),
        truth,
        options,
        [Budget(**budget) for budget in study["budgets"]],
        [Proxy(**proxy) for proxy in study["highlighted"]],
    )
    sources = [inputs.checkpoints, *inputs.targets, *inputs.solution_proxies]
    made_from = fingerprint([table_fingerprint(Path(path)) for path in sources], study)
    for name, table in tables.items():
        write_table(table, Path(snakemake.output[name]), made_from, csv=True)
