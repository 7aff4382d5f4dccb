"""Join the proxies of all corpora: one row for each checkpoint, task, statistic and weighting."""

from pathlib import Path

from proxycast.jobs import job
from proxycast.tables import fingerprint, scan_tables, table_fingerprint, write_table

with job(snakemake.log[0]):
    inputs = [Path(path) for path in snakemake.input]
    write_table(scan_tables(inputs), Path(snakemake.output[0]), fingerprint(*map(table_fingerprint, inputs)))
