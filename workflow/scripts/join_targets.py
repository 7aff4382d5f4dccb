"""Join the downstream results of all jobs, or read them from the user's table."""

from pathlib import Path

import polars as pl
from proxycast.jobs import job
from proxycast.tables import fingerprint, write_table
from proxycast.targets import read_target_table

with job(snakemake.log[0]):
    inputs = [Path(path) for path in snakemake.input]
    write_table(pl.concat(map(read_target_table, inputs)), Path(snakemake.output[0]), fingerprint(*inputs))
