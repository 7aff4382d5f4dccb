"""Join the proxies of all jobs: one row for each checkpoint, task, statistic and weighting."""

from pathlib import Path

import polars as pl
from proxycast.jobs import job
from proxycast.proxies import task_proxies
from proxycast.tables import fingerprint, table_fingerprint, write_table

with job(snakemake.log[0]):
    inputs = [Path(path) for path in (*snakemake.input.proxies, *snakemake.input.baselines)]
    table = pl.concat(
        [task_proxies(pl.scan_parquet(snakemake.input.proxies)), pl.scan_parquet(snakemake.input.baselines)]
    )
    write_table(table, Path(snakemake.output[0]), fingerprint(*map(table_fingerprint, inputs)))
