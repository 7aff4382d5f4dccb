"""Compute proxies from the token statistics of a corpus's models: all per task, the highlighted also per solution."""

import sys
from pathlib import Path

import polars as pl
from proxycast.config.experiments.selection_options import ModelSelectionOptions
from proxycast.experiments.model_selection.subsets import memberships, subset_proxies
from proxycast.extraction.temperature_fit import with_tempered
from proxycast.jobs import PROGRESS_SECONDS, job
from proxycast.proxy_formulas import (
    ProxyOptions,
    baseline_statistics,
    rbridge,
    solution_proxies,
    solution_ratios,
    tails,
    task_proxies,
)
from proxycast.solutions.rows import GENERIC_TEXT, read_solutions
from proxycast.tables import fingerprint, of_size, require_parts, scan_tables, table_fingerprint, write_table
from tqdm import tqdm

# Read few checkpoints at a time: 80 proxies per solution need much memory until they are averaged over a task. A short
# solution takes a hundred times as much memory as its tokens take on disk.
BATCH_BYTES = 8_000_000

with job(snakemake.log[0]):
    params, output, experts = snakemake.params, snakemake.output, list(snakemake.input.experts)
    manifests, options = [Path(path) for path in snakemake.input.token_stats], ProxyOptions(**params.proxies)
    kept = pl.LazyFrame(params.kept, schema=dict.fromkeys(("statistic", "weighting"), pl.String))
    members = None
    if output.get("subsets"):
        chosen = ModelSelectionOptions(**params.model_selection)
        solutions = {Path(path).stem: read_solutions(Path(path)) for path in snakemake.input.solutions}
        solutions.pop(GENERIC_TEXT, None)
        members = memberships(solutions, chosen.numbers, chosen.draws, params.seed)
    is_kept = pl.lit(True) if params.kept_checkpoints is None else pl.col("checkpoint").is_in(params.kept_checkpoints)
    of_tasks, of_solutions, of_subsets, fitted = [], [], [], []
    batches = [batch for manifest in manifests for batch in of_size(require_parts(manifest), BATCH_BYTES)]
    for batch in tqdm(batches, mininterval=PROGRESS_SECONDS, file=sys.stderr):
        scored, fits = with_tempered(pl.scan_parquet(batch))
        fitted.append(fits)
        for tail, token_stats in tails(scored, *params.tails).items():
            expert = token_stats.filter(pl.col("task") != GENERIC_TEXT)
            # The streaming engine adds in another order in every run, and so changes the last digit.
            proxies = solution_proxies(expert, options).collect(engine="in-memory").lazy()
            tables = pl.collect_all([task_proxies(proxies), baseline_statistics(token_stats)], engine="in-memory")
            tables += [rbridge(expert, scan_tables(experts)).collect(engine="in-memory")] if experts else []
            named = pl.lit(tail).alias("tail")
            of_tasks += [table.with_columns(named) for table in tables]
            ratios = solution_ratios(expert.filter(is_kept))
            every = pl.concat([proxies.filter(is_kept).with_columns(denominator=pl.lit(1.0)), ratios], how="diagonal")
            highlighted = every.join(kept, on=["statistic", "weighting"], how="semi", maintain_order="left")
            of_solutions.append(highlighted.with_columns(named).collect())
            if members is not None and tail == "tokens":
                of_subsets.append(subset_proxies(expert, members, options).with_columns(named))
    made_from = fingerprint(
        manifests,
        list(map(table_fingerprint, map(Path, experts))),
        options,
        params.kept,
        params.tails,
        params.kept_checkpoints,
    )
    write_table(pl.concat(of_tasks), Path(output.proxies), made_from)
    write_table(pl.concat(of_solutions), Path(output.of_solutions), made_from)
    if output.get("temperatures"):
        write_table(pl.concat(fitted), Path(output.temperatures), made_from)
    if members is not None:
        write_table(pl.concat(of_subsets), Path(output.subsets), fingerprint(made_from, members.to_dicts()))
