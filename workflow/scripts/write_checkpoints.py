"""Write the table of checkpoints that the study looks at, with the commits that revisions of the hub were."""

from pathlib import Path

from proxycast.checkpoints import checkpoints_table, plan_checkpoints
from proxycast.config import load_plan
from proxycast.jobs import job
from proxycast.tables import fingerprint, read_json, write_table

with job(snakemake.log[0]):
    plan = load_plan(snakemake.config, f"study {snakemake.config['study']}")
    commits = {}
    for path in map(Path, snakemake.input.revisions):
        for name, record in read_json(path).items():
            commits[f"{path.stem}-{name}"] = record["commit"]
    table = checkpoints_table(plan_checkpoints(plan), commits)
    write_table(table, Path(snakemake.output[0]), fingerprint(snakemake.params.checkpoints, commits))
