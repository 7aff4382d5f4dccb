"""Rank the models, with a truth learn from some how to rank others, and write the tables and the judge of this."""

import logging
from pathlib import Path

import polars as pl
from proxycast.config.experiments.selection_options import ModelSelectionOptions, SelectionOptions
from proxycast.config.study import Proxy
from proxycast.config.truth import Target
from proxycast.experiments.checkpoint_means import checkpoint_means
from proxycast.experiments.judges.judge_file import Reading, write_judge
from proxycast.experiments.judges.scorer_judges import model_judge
from proxycast.experiments.model_selection.model_ranking import NO_SOLUTIONS
from proxycast.experiments.model_selection.model_tables import model_selection_tables
from proxycast.experiments.post_trained.copies import read_compared
from proxycast.jobs import job
from proxycast.solutions.rows import read_problems
from proxycast.tables import fingerprint, read_table, scan_tables, table_fingerprint, write_table
from proxycast.weights.tokenizer import tokenizer_fingerprints

log = logging.getLogger("model_selection")

with job(snakemake.log[0]):
    study, inputs = snakemake.params.study, snakemake.input
    for line in snakemake.params.left_out:
        log.info("%s", line)
    subsets, of_solutions = inputs.subsets, inputs.solution_proxies
    checkpoints = read_compared(inputs.checkpoints, inputs.recipes)
    options = SelectionOptions(**study["selection"])

    def means(paths) -> pl.LazyFrame:
        return checkpoint_means(scan_tables(paths), checkpoints, options.last_checkpoints)

    tables = model_selection_tables(
        checkpoints,
        read_table(inputs.targets[0]) if inputs.targets else None,
        means(inputs.proxies).collect() if inputs.proxies else None,
        snakemake.params.tasks,
        Target(**study["target"]) if study["target"] else None,
        options,
        ModelSelectionOptions(**study["model_selection"] or {}),
        means(of_solutions) if of_solutions else NO_SOLUTIONS,
        [Proxy(**proxy) for proxy in study["highlighted"]],
        outside=read_table(inputs.outside) if inputs.outside else None,
        subsets=means(subsets).collect() if subsets else None,
        problems={Path(path).stem: read_problems(Path(path)) for path in inputs.problems},
        processes=snakemake.threads,
    )
    given = [path for path in (inputs.proxies, inputs.outside) if path]
    sources = [inputs.checkpoints, *inputs.recipes, *given, *inputs.targets, *subsets, *of_solutions]
    made_from = fingerprint([table_fingerprint(Path(path)) for path in sources], study)
    for name, table in tables.items():
        write_table(table, Path(snakemake.output[name]), made_from, csv=True)
    if "judge" in snakemake.output.keys():  # models were run, there is a truth, and nothing else is learned from
        judge = model_judge(
            study["study"],
            checkpoints,
            read_table(inputs.targets[0]),
            means(inputs.proxies).collect(),
            snakemake.params.tasks,
            Target(**study["target"]),
            ModelSelectionOptions(**study["model_selection"]),
            tables,
            reading=Reading.model_validate(snakemake.params.reading),
            tokenizers=tokenizer_fingerprints(snakemake.params.tokenizers),
            made_from={Path(path).stem: table_fingerprint(Path(path)) for path in (inputs.proxies, *inputs.targets)},
            processes=snakemake.threads,
        )
        write_judge(judge, Path(snakemake.output.judge))
