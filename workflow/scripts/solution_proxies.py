"""Token statistics of one job to its proxies per solution and its baselines per task."""

from pathlib import Path

import polars as pl
from proxycast.config import GENERIC_TEXT
from proxycast.jobs import job
from proxycast.proxies import ProxyOptions, baseline_statistics, solution_proxies
from proxycast.tables import fingerprint, table_fingerprint, write_table

with job(snakemake.log[0]):
    source, options = Path(snakemake.input[0]), ProxyOptions(**snakemake.params.proxies)
    made_from = fingerprint(table_fingerprint(source), options)
    token_stats = pl.scan_parquet(source)
    proxies = solution_proxies(token_stats.filter(pl.col("task") != GENERIC_TEXT), options)
    write_table(proxies, Path(snakemake.output.proxies), made_from)
    write_table(baseline_statistics(token_stats), Path(snakemake.output.baselines), made_from)
