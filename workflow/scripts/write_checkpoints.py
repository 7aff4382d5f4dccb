"""Write the table of the study's checkpoints, with the commits that revisions on the hub resolved to."""

from pathlib import Path

from proxycast.jobs import job
from proxycast.study.checkpoint_plan import plan_checkpoints
from proxycast.study.checkpoints import checkpoints_table
from proxycast.study.loader import load_plan
from proxycast.tables import fingerprint, read_json, write_table

with job(snakemake.log[0]):
    plan = load_plan(snakemake.config, f"study {snakemake.config['study']}")
    commits = {}
    for path in map(Path, snakemake.input.revisions):
        for name, record in read_json(path).items():
            commits[f"{path.stem}-{name}"] = record["commit"]
    table = checkpoints_table(plan_checkpoints(plan), commits)
    write_table(table, Path(snakemake.output[0]), fingerprint(snakemake.params.checkpoints, commits))
