"""Fetch all checkpoints of a training run from the hub, and convert those that need it.

Record the commit of each checkpoint and the hash of every file.
"""

import os
from functools import partial
from pathlib import Path

from proxycast.config.study import HubOptions
from proxycast.jobs import any_runs, job
from proxycast.weights.disk_room import Patience
from proxycast.weights.hub_runs import fetch_run

os.environ["OMP_NUM_THREADS"] = "1"  # Snakemake sets 0, because the rule has 0 threads; OpenMP refuses 0

with job(snakemake.log[0]):
    # Not a parameter of the rule: the number of retries does not change the result.
    options = HubOptions(**snakemake.config.get("hub", {}))
    checkpoints, logs = snakemake.params.checkpoints, Path(snakemake.log[0]).parent.parent
    fetch_run(
        [(f"step{step}", hub, revision) for step, hub, revision, _ in checkpoints],
        Path(snakemake.output.weights),
        options,
        to_convert=[f"step{step}" for step, _, _, convert_from in checkpoints if convert_from],
        tokenizer=Path(snakemake.input.tokenizer) if snakemake.input.get("tokenizer") else None,
        conversion_code=snakemake.params.code,
        record_file=Path(snakemake.output.record),
        patience=Patience(60 * snakemake.resources.idle_minutes, partial(any_runs, logs, besides="download_")),
    )
