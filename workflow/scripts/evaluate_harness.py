"""Downstream results of one job's checkpoints by lm-eval."""

from pathlib import Path

import polars as pl
import torch
from proxycast.checkpoints import job_options
from proxycast.config import load_plan
from proxycast.harness import LM_EVAL, Harness, HarnessTask, harness_rows
from proxycast.jobs import job
from proxycast.tables import fingerprint, write_table
from proxycast.targets import TARGETS_SCHEMA


def evaluate(snakemake) -> None:
    torch.set_num_threads(snakemake.threads)
    params = snakemake.params
    rows = harness_rows(
        [(name, Path(folder)) for name, folder, _ in params.checkpoints],
        job_options(load_plan(snakemake.config, where="the study"), params.corpus, params.checkpoints),
        {name: HarnessTask(**task) for name, task in params.tasks.items()},
        Harness(**params.harness),
        params.metric,
        Path(params.results),
    )
    table = pl.DataFrame(rows, schema=TARGETS_SCHEMA, orient="row")
    write_table(table, Path(snakemake.output.targets), fingerprint(LM_EVAL, rows))


if __name__ == "__main__":  # vLLM's processes import this file again
    with job(snakemake.log[0]):
        evaluate(snakemake)
