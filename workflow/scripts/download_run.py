"""Fetch all checkpoints of a training run from the hub, and convert those that must be.

The commit of each and the hash of every file are recorded.
"""

import os
from functools import partial
from pathlib import Path

from proxycast.hub import HubOptions, Patience, fetch_run
from proxycast.jobs import any_runs, job

os.environ["OMP_NUM_THREADS"] = "1"  # Snakemake says 0, as the rule holds no core; OpenMP takes no 0

with job(snakemake.log[0]):
    # Read past Snakemake's parameters: how often a download is tried again changes nothing that it brings.
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
