"""Order the corpora, compare every proxy and baseline with the truth, and write the tables and the judge."""

import logging
from pathlib import Path

import polars as pl
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.ladder import RatePair
from proxycast.config.study import Budget, Proxy
from proxycast.config.truth import Target
from proxycast.experiments.checkpoint_means import checkpoint_means
from proxycast.experiments.data_selection.data_tables import data_selection_tables, order_tables
from proxycast.experiments.data_selection.rate_check import rate_check_tables, rates_table
from proxycast.experiments.judges.judge_file import Reading, write_judge
from proxycast.experiments.judges.judge_learning import corpus_judge
from proxycast.jobs import job
from proxycast.solutions.rows import read_problems
from proxycast.tables import fingerprint, read_table, require_parts, scan_tables, table_fingerprint, write_table
from proxycast.weights.tokenizer import tokenizer_fingerprints

log = logging.getLogger("data_selection")

with job(snakemake.log[0]):
    study, inputs = snakemake.params.study, snakemake.input
    checkpoints, tasks = read_table(inputs.checkpoints), snakemake.params.tasks
    options = SelectionOptions(**study["selection"])
    budgets = [Budget(**budget) for budget in study["budgets"]]
    highlighted = [Proxy(**proxy) for proxy in study["highlighted"]]

    def means(values: pl.LazyFrame) -> pl.LazyFrame:
        return checkpoint_means(values, checkpoints.filter(role="proxy"), options.last_checkpoints)

    proxies = means(scan_tables(inputs.proxies)) if inputs.get("proxies") else None
    of_solutions = means(scan_tables(inputs.solution_proxies)) if inputs.get("solution_proxies") else None
    outside = read_table(inputs.outside) if inputs.get("outside") else None
    for line in snakemake.params.left_out:
        log.info("%s", line)
    targets = means(read_table(inputs.targets).lazy()).collect() if inputs.get("targets") else None
    if targets is not None:
        tables = data_selection_tables(
            checkpoints,
            targets,
            tasks,
            Target(**study["target"]),
            options,
            budgets,
            highlighted,
            proxies=proxies,
            of_solutions=of_solutions,
            token_stats=[part for path in inputs.get("token_stats", []) for part in require_parts(Path(path))],
            problems={Path(path).stem: read_problems(Path(path)) for path in inputs.get("problems", [])},
            outside=outside,
            curve=read_table(inputs.curve) if inputs.get("curve") else None,
            threads=snakemake.threads,
        )
    else:
        tables = order_tables(checkpoints, proxies, of_solutions, tasks, options, budgets, highlighted, outside)
    if rates := [RatePair(**pair) for pair in snakemake.params.rates]:
        tables["rate_check"] = rate_check_tables(checkpoints, of_solutions, highlighted, rates, options)
        if targets is not None:
            truth = Target(**study["target"])
            of_rates = checkpoints, targets, tasks, truth, options, highlighted, rates
            tables["rates"] = rates_table(*of_rates, proxies=proxies, outside=outside)
    sources = [Path(path) for path in (inputs.get("proxies"), inputs.get("targets"), inputs.get("outside")) if path]
    made_from = fingerprint(*map(table_fingerprint, sources), study)
    for name, table in tables.items():
        write_table(table, Path(snakemake.output[name]), made_from, csv=True)
    if "judge" in snakemake.output.keys():  # models were run, and there is a truth
        judge = corpus_judge(
            study["study"],
            checkpoints,
            targets,
            tasks,
            Target(**study["target"]),
            highlighted,
            tables,
            proxies=proxies,
            reading=snakemake.params.reading and Reading.model_validate(snakemake.params.reading),
            tokenizers=tokenizer_fingerprints(snakemake.params.tokenizers),
            made_from={path.stem: table_fingerprint(path) for path in sources},
        )
        write_judge(judge, Path(snakemake.output.judge))
