"""Write recorded token statistics for every checkpoint of one job, instead of running its models."""

from pathlib import Path

from proxycast.extraction.engines.replay import replay
from proxycast.jobs import job
from proxycast.tables import write_json

with job(snakemake.log[0]):
    manifest = Path(snakemake.output.token_stats)
    checkpoints = [name for name, _, role in snakemake.params.checkpoints if role != "target"]
    tasks = [Path(path).stem for path in snakemake.input.solutions]
    code = snakemake.params.code
    write_json(replay(Path(snakemake.input.replay), checkpoints, tasks, manifest.parent, code=code), manifest)
