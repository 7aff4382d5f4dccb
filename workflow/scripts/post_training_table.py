"""How the post-training of each model went, as a table."""

from pathlib import Path

from proxycast.jobs import job
from proxycast.tables import fingerprint, write_table
from proxycast.training.miniature.post_training.post_train import table_of_recipes

with job(snakemake.log[0]):
    manifests = list(map(Path, snakemake.input))
    write_table(table_of_recipes(manifests), Path(snakemake.output[0]), fingerprint(manifests), csv=True)
