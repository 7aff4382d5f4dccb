"""Write the table of checkpoints that the study looks at."""

from pathlib import Path

import polars as pl
from proxycast.jobs import job
from proxycast.tables import fingerprint, write_table

with job(snakemake.log[0]):
    checkpoints = snakemake.params.checkpoints
    write_table(pl.DataFrame(checkpoints), Path(snakemake.output[0]), fingerprint(checkpoints))
