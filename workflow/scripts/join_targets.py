"""Join the downstream results of all jobs, or read them from the user's table."""

from pathlib import Path

from proxycast.jobs import job
from proxycast.tables import MANIFEST, fingerprint, require_parts, write_table
from proxycast.truth.targets import read_target_tables, with_full_names

with job(snakemake.log[0]):
    inputs = [Path(path) for path in snakemake.input]
    tables = [table for path in inputs for table in (require_parts(path) if path.name == MANIFEST else [path])]
    names = snakemake.params.short_names
    table = with_full_names(read_target_tables(tables), names, ", ".join(map(str, inputs)))
    write_table(table, Path(snakemake.output[0]), fingerprint(*inputs, *([names] if names else [])))
