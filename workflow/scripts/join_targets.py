"""Join the downstream results of all jobs, or read them from the user's table."""

from pathlib import Path

from proxycast.jobs import job
from proxycast.tables import MANIFEST, fingerprint, require_parts, write_table
from proxycast.targets import read_target_tables

with job(snakemake.log[0]):
    inputs = [Path(path) for path in snakemake.input]
    tables = [table for path in inputs for table in (require_parts(path) if path.name == MANIFEST else [path])]
    write_table(read_target_tables(tables), Path(snakemake.output[0]), fingerprint(*inputs))
