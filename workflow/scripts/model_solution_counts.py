"""How many solutions are enough to order the models."""

from pathlib import Path

import polars as pl
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Proxy
from proxycast.config.truth import Target
from proxycast.experiments.checkpoint_means import checkpoint_means
from proxycast.experiments.model_selection.known_models import models_with_truth
from proxycast.experiments.model_selection.model_counts import model_count_table
from proxycast.experiments.post_trained.copies import read_compared
from proxycast.jobs import job
from proxycast.tables import fingerprint, read_table, scan_tables, table_fingerprint, write_table

with job(snakemake.log[0]):
    study, inputs = snakemake.params.study, snakemake.input
    checkpoints = read_compared(inputs.checkpoints, inputs.recipes)
    options = SelectionOptions(**study["selection"])

    def means(paths) -> pl.LazyFrame:
        return checkpoint_means(scan_tables(paths), checkpoints, options.last_checkpoints)

    targets = read_table(inputs.targets[0]) if inputs.targets else None
    target = Target(**study["target"]) if study["target"] else None
    known = models_with_truth(checkpoints, means(inputs.proxies).collect(), targets, snakemake.params.tasks, target)
    highlighted = [Proxy(**proxy) for proxy in study["highlighted"]]
    table = model_count_table(known, means(inputs.solution_proxies), highlighted, options)
    sources = [inputs.checkpoints, *inputs.recipes, inputs.proxies, *inputs.targets, *inputs.solution_proxies]
    made_from = fingerprint([table_fingerprint(Path(path)) for path in sources], study)
    write_table(table, Path(snakemake.output.solution_counts), made_from, csv=True)
